-- A wrong app secret refuses every page as if each were at fault. That is one incident, and no page's.

-- Pages that were refused for what may be our own fault, until they are answered or given up.
CREATE TABLE provider_refusal (
    provider         text NOT NULL,
    integration_id   text NOT NULL REFERENCES integration,
    reason           text NOT NULL,
    since            timestamptz NOT NULL,
    others_answered  boolean NOT NULL DEFAULT false,  -- since then: so it is not the whole provider that refuses us
    PRIMARY KEY (provider, integration_id)
);

CREATE TABLE provider_incident (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider   text NOT NULL,
    reason     text NOT NULL,
    detail     text NOT NULL,
    opened_at  timestamptz NOT NULL,
    probe_at   timestamptz NOT NULL,  -- not before this is another page tried
    closed_at  timestamptz
);
CREATE UNIQUE INDEX provider_incident_open ON provider_incident (provider) WHERE closed_at IS NULL;
