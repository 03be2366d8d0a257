-- Pages of organizations, the ledger of (integration, day), the numbers, and their sums.
-- `day` is everywhere the provider's day; what it meant in time is kept as source_end_time.

CREATE TABLE organization (
    id          text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9._:-]{1,128}$'),
    name        text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    deleted_at  timestamptz
);

CREATE TABLE integration (
    id               text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9._:-]{1,128}$'),
    organization_id  text NOT NULL REFERENCES organization,
    provider         text NOT NULL,
    internal_id      text NOT NULL,  -- the provider's id of the page
    name             text NOT NULL DEFAULT '',
    -- Version byte of the encryption: a token in clear is refused by the database itself.
    token            text NOT NULL CHECK (token LIKE 'gAAAA%'),
    disabled         boolean NOT NULL DEFAULT false,
    in_between_steps boolean NOT NULL DEFAULT false,
    refresh_needed   boolean NOT NULL DEFAULT false,
    refresh_reason   text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    deleted_at       timestamptz,
    UNIQUE (organization_id, internal_id)
);

-- A list of metrics is data: they die on fixed dates for all versions of an API, and are then not `supported`.
-- A provider is asked for what is listed here, and how it adds up over pages is said here and nowhere else.
CREATE TABLE metric_catalog (
    provider         text NOT NULL,
    metric           text NOT NULL,
    additivity       text NOT NULL CHECK (additivity IN ('sum', 'level', 'none', 'ratio')),
    numerator        text,
    denominator      text,
    unit             text NOT NULL DEFAULT 'count',
    valid_from       date,
    valid_to         date,  -- its last day
    api_min_version  text,
    supported        boolean NOT NULL DEFAULT true,
    PRIMARY KEY (provider, metric),
    CHECK ((additivity = 'ratio') = (numerator IS NOT NULL AND denominator IS NOT NULL))
);

-- The ledger: what became of each (integration, day). It outlives the queue.
CREATE TABLE ingest_day_state (
    integration_id     text NOT NULL REFERENCES integration,
    day                date NOT NULL,
    organization_id    text NOT NULL REFERENCES organization,
    queue              text NOT NULL DEFAULT 'default',
    state              text NOT NULL DEFAULT 'expected'
                       CHECK (state IN ('expected', 'done', 'dead', 'skipped', 'abandoned')),
    attempts_used      integer NOT NULL DEFAULT 0,
    deferrals          integer NOT NULL DEFAULT 0,
    error_class        text,
    reason             text,
    detail             text,
    provider_code      integer,
    provider_subcode   integer,
    http_status        integer,
    fbtrace_id         text,
    next_attempt_at    timestamptz,
    last_success_at    timestamptz,
    run_id             text,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (integration_id, day)
);
CREATE INDEX ingest_day_state_of_organization ON ingest_day_state (organization_id, day);
-- Asked after every ingest: is anything of this organization and day still to come?
CREATE INDEX ingest_day_state_expected ON ingest_day_state (organization_id, day) WHERE state = 'expected';
-- Asked by every plan and reconcile: what has not ended well?
CREATE INDEX ingest_day_state_open ON ingest_day_state (day) WHERE state IN ('expected', 'dead');

-- No foreign keys here: every row is written together with its ledger row, which has them, and they would cost
-- a look-up per number.
CREATE TABLE page_metric_daily (
    integration_id   text NOT NULL,
    metric           text NOT NULL,
    day              date NOT NULL,
    organization_id  text NOT NULL,
    provider         text NOT NULL,
    value            numeric CHECK (value <> 'NaN'),
    breakdown        jsonb,
    status           text NOT NULL CHECK (status IN ('value', 'no_data', 'pending', 'unsupported')),
    source_end_time  timestamptz,
    fetched_at       timestamptz NOT NULL,
    first_seen_at    timestamptz NOT NULL,
    last_changed_at  timestamptz NOT NULL,
    revision         integer NOT NULL DEFAULT 1,
    run_id           text,
    -- The day before the metric: an aggregate reads all metrics of one page and day at once.
    PRIMARY KEY (integration_id, day, metric),
    CHECK ((status = 'value') = (value IS NOT NULL))
);

CREATE TABLE page_metric_history (
    integration_id  text NOT NULL,
    metric          text NOT NULL,
    day             date NOT NULL,
    revision        integer NOT NULL,  -- the one that replaced the old value
    old_value       numeric,
    new_value       numeric,
    observed_at     timestamptz NOT NULL,
    run_id          text,
    PRIMARY KEY (integration_id, day, metric, revision)
);

-- A trigger and not the writer: only the database sees the old row under the lock of the update itself.
CREATE FUNCTION keep_page_metric_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO page_metric_history (integration_id, metric, day, revision, old_value, new_value, observed_at, run_id)
    VALUES (NEW.integration_id, NEW.metric, NEW.day, NEW.revision, OLD.value, NEW.value, NEW.fetched_at, NEW.run_id);
    RETURN NULL;
END $$;

CREATE TRIGGER page_metric_history AFTER UPDATE ON page_metric_daily
    FOR EACH ROW WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION keep_page_metric_history();

-- Answers that would have replaced a value by nothing. The value stays, the answer is remembered here.
CREATE TABLE page_metric_anomaly (
    integration_id  text NOT NULL,
    metric          text NOT NULL,
    day             date NOT NULL,
    status          text NOT NULL,
    kept_value      numeric NOT NULL,
    first_seen_at   timestamptz NOT NULL,
    run_id          text,
    PRIMARY KEY (integration_id, day, metric, status)
);

CREATE TABLE org_metric_daily (
    organization_id       text NOT NULL REFERENCES organization,
    metric                text NOT NULL,
    day                   date NOT NULL,
    value                 numeric,   -- NULL when nothing was answered, and always for what does not add up
    page_max              numeric,   -- the largest page, the honest figure for what does not add up
    additivity            text NOT NULL,
    n_expected            integer NOT NULL,
    n_value               integer NOT NULL,
    n_no_data             integer NOT NULL,
    n_pending             integer NOT NULL,
    n_failed              integer NOT NULL,
    n_unsupported         integer NOT NULL,
    completeness          numeric,   -- answered / expected, NULL when nothing is expected
    is_final              boolean NOT NULL,
    restated_after_final  boolean NOT NULL DEFAULT false,
    missing               jsonb NOT NULL,
    inputs_hash           text NOT NULL,
    revision              integer NOT NULL DEFAULT 1,
    computed_at           timestamptz NOT NULL,
    PRIMARY KEY (organization_id, day, metric)
);
CREATE INDEX org_metric_daily_provisional ON org_metric_daily (day) WHERE NOT is_final;

-- The outbox of aggregate jobs. Marks are only added and taken, never updated: the pages of a large organization
-- would queue for the lock of one shared row, and a mark that is added while an aggregate runs survives it.
CREATE TABLE aggregate_dirty (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id  text NOT NULL,
    day              date NOT NULL,
    since            timestamptz NOT NULL DEFAULT now(),
    reason           text NOT NULL
);
CREATE INDEX aggregate_dirty_of ON aggregate_dirty (organization_id, day);

-- Who must not be called before when: the whole app, a user, a page.
CREATE TABLE provider_gate (
    provider       text NOT NULL,
    scope          text NOT NULL CHECK (scope IN ('app', 'user', 'page')),
    key            text NOT NULL,
    blocked_until  timestamptz NOT NULL,
    usage_pct      numeric,
    source         text NOT NULL,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, scope, key)
);
