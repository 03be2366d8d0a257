-- Asked by every reconcile: what was skipped, and can its page be read now? A page may wait for its owner for months.
CREATE INDEX ingest_day_state_skipped ON ingest_day_state (integration_id, day) WHERE state = 'skipped';
