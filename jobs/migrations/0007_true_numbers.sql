-- Stores what each number needs beside its value: the zone of its day, where it came from, and which days were answered
-- without a number. Also stores which metrics each page was refused, so that one page's refusal does not affect others.

ALTER TABLE integration
    -- The zone of the page's days. The default is that of the provider `facebook`.
    ADD COLUMN zone text NOT NULL DEFAULT 'America/Los_Angeles',
    -- Whose allowance pays for the page's calls. NULL: all pages of the organization and provider share one.
    ADD COLUMN user_id text;
UPDATE integration SET zone = 'UTC' WHERE provider = 'csv';

-- A page whose numbers are only imported is never asked for any: the provider `import` has no metric to ask for.
INSERT INTO metric_catalog (provider, metric, additivity, numerator, denominator, unit, supported)
SELECT 'import', metric, additivity, numerator, denominator, unit, false FROM metric_catalog WHERE provider = 'csv';

ALTER TABLE ingest_day_state
    ADD COLUMN has_value boolean NOT NULL DEFAULT false,  -- a number is stored for the day
    ADD COLUMN read_again_at timestamptz,  -- when somebody asked to read this done day again; NULL: nobody did
    -- A later reading mended this failed day, and its dead letter may still lie in this queue. NULL: no such letter.
    ADD COLUMN letter_queue text;
UPDATE ingest_day_state s SET has_value = true
WHERE EXISTS (SELECT FROM page_metric_daily p
              WHERE p.integration_id = s.integration_id AND p.day = s.day AND p.status = 'value');
-- Partial indexes: such rows are rare, and every reconcile looks for them.
CREATE INDEX ingest_day_state_read_again ON ingest_day_state (day) WHERE read_again_at IS NOT NULL;
CREATE INDEX ingest_day_state_letter ON ingest_day_state (letter_queue) WHERE letter_queue IS NOT NULL;
-- Asked by every reconcile: which days were stored without has_value by a worker of an earlier release?
CREATE INDEX ingest_day_state_empty ON ingest_day_state (updated_at) WHERE state = 'done' AND NOT has_value;
DROP INDEX ingest_day_state_coverage;
CREATE INDEX ingest_day_state_coverage ON ingest_day_state (organization_id, integration_id, day)
    INCLUDE (state, has_value);

ALTER TABLE page_metric_daily
    ADD COLUMN reason text,  -- why the reading is not a number
    ADD COLUMN source text,  -- the checksum of the imported file. NULL: the number came from the provider
    DROP CONSTRAINT page_metric_daily_status_check,
    ADD CONSTRAINT page_metric_daily_status_check
        CHECK (status IN ('value', 'no_data', 'pending', 'unsupported', 'unreadable'));

-- A sum does not say which pages answered without a number. Comparing two days of different pages needs to know, and
-- such rows are few.
CREATE INDEX page_metric_daily_odd ON page_metric_daily (organization_id, metric, day)
    INCLUDE (integration_id) WHERE status <> 'value';

ALTER TABLE page_metric_history ADD COLUMN source text;  -- where the new value came from, as in page_metric_daily
CREATE OR REPLACE FUNCTION keep_page_metric_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO page_metric_history (
        integration_id, metric, day, revision, old_value, new_value, observed_at, run_id, source)
    VALUES (NEW.integration_id, NEW.metric, NEW.day, NEW.revision, OLD.value, NEW.value, NEW.fetched_at, NEW.run_id,
            NEW.source);
    RETURN NULL;
END $$;
-- A person asks what changed lately, of whatever day.
CREATE INDEX page_metric_history_seen ON page_metric_history (observed_at);
CREATE INDEX page_metric_anomaly_seen ON page_metric_anomaly (first_seen_at);

CREATE TABLE import_file (
    integration_id  text NOT NULL REFERENCES integration,
    sha256          text NOT NULL,
    name            text NOT NULL,
    imported_at     timestamptz NOT NULL,  -- when it was last imported
    imported_by     text NOT NULL,
    PRIMARY KEY (integration_id, sha256)
);

ALTER TABLE org_metric_daily
    ADD COLUMN n_unreadable integer NOT NULL DEFAULT 0,  -- missing pages: their answer was not a number
    ADD COLUMN n_refused integer NOT NULL DEFAULT 0,  -- missing pages: the provider gives the metric to others only
    ADD COLUMN value_coverage numeric,  -- pages with a number / expected pages; NULL when no page is expected
    ADD COLUMN zone text,  -- the zone of the day; "mixed" when the zones of the pages differ; NULL without any page
    ADD COLUMN pages_hash text;  -- a hash of the pages with a number: equal hashes mean the same pages
UPDATE org_metric_daily SET value_coverage = trunc(n_value::numeric / n_expected, 4) WHERE n_expected > 0;
UPDATE org_metric_daily d SET zone = (
    SELECT CASE WHEN count(DISTINCT zone) > 1 THEN 'mixed' ELSE min(zone) END
    FROM integration i WHERE i.organization_id = d.organization_id);

-- The metrics that a page was refused, each with the UTC day of the last refusal.
CREATE TABLE metric_refusal (
    integration_id  text NOT NULL REFERENCES integration,
    metric          text NOT NULL,
    provider        text NOT NULL,
    refused_on      date NOT NULL,
    PRIMARY KEY (integration_id, metric)
);
-- After each refusal a worker counts the pages that were refused this metric today.
CREATE INDEX metric_refusal_of_metric ON metric_refusal (provider, metric, refused_on);

-- Whether a provider still gives a metric. given_on: the last UTC day on which it gave the metric to a page.
-- dead_since: the day since which the metric counts as dead, which means that no page is given it. probed_on: the last
-- day on which a page that was never refused the dead metric was asked for it. retried_on: the last day on which a page
-- that was refused it before was asked again.
CREATE TABLE metric_life (
    provider    text NOT NULL,
    metric      text NOT NULL,
    given_on    date,
    dead_since  date,
    probed_on   date,
    retried_on  date,
    PRIMARY KEY (provider, metric)
);

-- How much data one call for a page may ask for, learned after the provider had demanded less. Forgotten after `until`.
CREATE TABLE page_load (
    integration_id  text PRIMARY KEY REFERENCES integration,
    days            integer NOT NULL CHECK (days > 0),
    metrics         integer NOT NULL CHECK (metrics > 0),
    until           timestamptz NOT NULL
);

-- A refusal is judged later, when the results of other pages are known, and without a second call. So it is kept whole.
ALTER TABLE provider_refusal
    ADD COLUMN error jsonb,  -- NULL in rows of an earlier release, which need a second call
    ADD COLUMN failures integer NOT NULL DEFAULT 1,  -- failures of the page in a row
    ADD COLUMN is_outage boolean NOT NULL DEFAULT false,  -- true: no answer or a server error; false: a refusal
    ADD COLUMN is_silence boolean NOT NULL DEFAULT false;  -- the provider did not send one byte
ALTER TABLE provider_incident
    ADD COLUMN is_outage boolean NOT NULL DEFAULT false,
    ADD COLUMN opened_by text,  -- the page whose failure opened it, and the one whose answer closed it
    ADD COLUMN closed_by text;
-- A page that names the app is looked up here: did it stop all others a moment ago?
CREATE INDEX provider_incident_of_page ON provider_incident (opened_by, closed_at);
-- And each refused page here: did an incident end after it was asked?
CREATE INDEX provider_incident_closed ON provider_incident (provider, closed_at);
