"""The schema, file by file. Why an index is there stands beside it, or with its query in `tests/test_query_plans.py`.

No table is partitioned. Months of their own pay when old ones are dropped, and no day is. Queries name a page or an
organization, with which the keys begin, or are about what is open, of which partial indexes hold little. 50,000 pages
have 440 million numbers after two years: an index of some 50 GB and four or five levels, of each of which a look-up
reads one block. By month, a page's days and the year of a `redisq coverage` would lie in many indexes instead. The
price: a day's new rows go to as many blocks as there are pages. Should it become too high, or old days be dropped, the
keys are ready for ranges of `day`: all hold it.
"""
