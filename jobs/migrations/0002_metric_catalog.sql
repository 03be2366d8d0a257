-- The metrics that Facebook still answers in 2026, and how each adds up over the pages of an organization.

INSERT INTO metric_catalog (provider, metric, additivity, api_min_version) VALUES
    ('facebook', 'page_media_view',               'sum',   'v23.0'),
    ('facebook', 'page_total_media_view_unique',  'none',  'v23.0'),
    ('facebook', 'page_post_engagements',         'sum',   NULL),
    ('facebook', 'page_daily_follows',            'sum',   NULL),
    ('facebook', 'page_follows',                  'level', NULL),
    ('facebook', 'page_views_total',              'sum',   NULL),
    ('facebook', 'page_actions_post_reactions_like_total',  'sum', NULL),
    ('facebook', 'page_actions_post_reactions_love_total',  'sum', NULL),
    ('facebook', 'page_actions_post_reactions_wow_total',   'sum', NULL),
    ('facebook', 'page_actions_post_reactions_haha_total',  'sum', NULL),
    ('facebook', 'page_actions_post_reactions_sorry_total', 'sum', NULL),
    ('facebook', 'page_actions_post_reactions_anger_total', 'sum', NULL);

-- Exported files use the same names. Whoever exports others adds a row for each, and says so whether it adds up:
-- nobody else knows, and a wrong sum looks like a right one.
INSERT INTO metric_catalog (provider, metric, additivity)
SELECT 'csv', metric, additivity FROM metric_catalog WHERE provider = 'facebook';
