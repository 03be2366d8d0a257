-- What the numbers say of themselves: the zone of a day, where a number came from, and which days were answered without
-- one. And what is known of a page's metrics, so that one page's refusal says nothing about another's.

ALTER TABLE integration
    -- The zone of the page's days. The default is that of the provider `facebook`.
    ADD COLUMN zone text NOT NULL DEFAULT 'America/Los_Angeles',
    -- Whose allowance the page's calls are charged to. NULL: that of all pages of the organization and provider.
    ADD COLUMN user_id text;
UPDATE integration SET zone = 'UTC' WHERE provider = 'csv';

-- A page whose numbers are only imported is never asked for any: the provider `import` has no metric to ask for.
INSERT INTO metric_catalog (provider, metric, additivity, numerator, denominator, unit, supported)
SELECT 'import', metric, additivity, numerator, denominator, unit, false FROM metric_catalog WHERE provider = 'csv';

ALTER TABLE ingest_day_state
    ADD COLUMN has_value boolean NOT NULL DEFAULT false,  -- a number is stored for the day
    ADD COLUMN read_again_at timestamptz,  -- since when a day that is done is wanted once more
    ADD COLUMN letter_queue text;  -- where the dead letter of a day may lie that a later reading has mended
UPDATE ingest_day_state s SET has_value = true
WHERE EXISTS (SELECT FROM page_metric_daily p
              WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.status = 'value');
-- Both are rare, and asked for by every reconcile.
CREATE INDEX ingest_day_state_read_again ON ingest_day_state (day) WHERE read_again_at IS NOT NULL;
CREATE INDEX ingest_day_state_letter ON ingest_day_state (letter_queue) WHERE letter_queue IS NOT NULL;
DROP INDEX ingest_day_state_coverage;
CREATE INDEX ingest_day_state_coverage ON ingest_day_state (organization_id, integration_id, day)
    INCLUDE (state, has_value);

ALTER TABLE page_metric_daily
    ADD COLUMN reason text,  -- why a reading is no number
    ADD COLUMN source text,  -- the checksum of the file that was imported. NULL: the provider was asked
    DROP CONSTRAINT page_metric_daily_status_check,
    ADD CONSTRAINT page_metric_daily_status_check
        CHECK (status IN ('value', 'no_data', 'pending', 'unsupported', 'unreadable'));

-- Which pages have a day without a number stands in no sum. They are few, and asked for whenever two days of different
-- pages are compared.
CREATE INDEX page_metric_daily_odd ON page_metric_daily (organization_id, metric, day)
    INCLUDE (integration_id) WHERE status <> 'value';

ALTER TABLE page_metric_history ADD COLUMN source text;  -- of the new value, as above
CREATE OR REPLACE FUNCTION keep_page_metric_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO page_metric_history (
        integration_id, metric, day, revision, old_value, new_value, observed_at, run_id, source)
    VALUES (NEW.integration_id, NEW.metric, NEW.day, NEW.revision, OLD.value, NEW.value, NEW.fetched_at, NEW.run_id,
            NEW.source);
    RETURN NULL;
END $$;

CREATE TABLE import_file (
    integration_id  text NOT NULL REFERENCES integration,
    sha256          text NOT NULL,
    name            text NOT NULL,
    imported_at     timestamptz NOT NULL,  -- the last time
    imported_by     text NOT NULL,
    PRIMARY KEY (integration_id, sha256)
);

ALTER TABLE org_metric_daily
    ADD COLUMN n_unreadable integer NOT NULL DEFAULT 0,  -- answered with what is no number: missing
    ADD COLUMN n_refused integer NOT NULL DEFAULT 0,  -- refused to this page and given to others: missing
    ADD COLUMN value_coverage numeric,  -- pages with a number / expected, NULL when nothing is expected
    ADD COLUMN zone text,  -- of the day; "mixed" where the zones of the pages differ, NULL without any page
    ADD COLUMN pages_hash text;  -- of the ids of the pages with a number: two days with the same hash have the same pages
UPDATE org_metric_daily SET value_coverage = trunc(n_value::numeric / n_expected, 4) WHERE n_expected > 0;
UPDATE org_metric_daily d SET zone = (
    SELECT CASE WHEN count(DISTINCT zone) > 1 THEN 'mixed' ELSE min(zone) END
    FROM integration i WHERE i.organization_id = d.organization_id);

-- Which metrics a page was refused, and on which UTC day the last time.
CREATE TABLE metric_refusal (
    integration_id  text NOT NULL REFERENCES integration,
    metric          text NOT NULL,
    provider        text NOT NULL,
    refused_on      date NOT NULL,
    PRIMARY KEY (integration_id, metric)
);
-- Asked after each refusal: how many pages were refused this metric today?
CREATE INDEX metric_refusal_of_metric ON metric_refusal (provider, metric, refused_on);

-- Whether a provider still has a metric: the UTC day on which a page was given it the last time; since when it is taken
-- for dead; and the day on which a page was last asked to find out whether it is alive again.
CREATE TABLE metric_life (
    provider    text NOT NULL,
    metric      text NOT NULL,
    given_on    date,
    dead_since  date,
    probed_on   date,
    PRIMARY KEY (provider, metric)
);

-- What the provider accepted for a page after it had asked for less data, and until when that is remembered.
CREATE TABLE page_load (
    integration_id  text PRIMARY KEY REFERENCES integration,
    days            integer NOT NULL CHECK (days > 0),
    metrics         integer NOT NULL CHECK (metrics > 0),
    until           timestamptz NOT NULL
);

-- A refusal is judged when it is known whether others share it, without a second call. So it is kept whole.
ALTER TABLE provider_refusal
    ADD COLUMN error jsonb,  -- NULL for rows of an earlier release, which are judged by a second call
    ADD COLUMN failures integer NOT NULL DEFAULT 1,  -- in a row
    ADD COLUMN is_outage boolean NOT NULL DEFAULT false,  -- no answer or a server error, and no refusal
    ADD COLUMN is_silence boolean NOT NULL DEFAULT false;  -- not one byte came
ALTER TABLE provider_incident ADD COLUMN is_outage boolean NOT NULL DEFAULT false;
