-- The day whose dead letter says that the page must be connected again. Its other days are skipped, whoever finds out
-- at the same time. NULL: nothing is to be connected, or a worker of an earlier release has found out.
ALTER TABLE integration ADD COLUMN refresh_day date;
UPDATE integration i SET refresh_day = (
    SELECT max(day) FROM ingest_day_state s
    WHERE s.integration_id = i.id AND s.state = 'dead' AND s.reason = i.refresh_reason)
WHERE refresh_needed;
