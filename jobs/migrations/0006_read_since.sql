-- Since when a page is read: since it was connected, or enabled again. Days before that which have no row are nobody's.
ALTER TABLE integration ADD COLUMN read_since timestamptz NOT NULL DEFAULT now();
UPDATE integration SET read_since = created_at;
