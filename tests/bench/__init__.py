"""The benchmark: redisq, bare loops of redis-py and other queues, watched the same way. See README.md beside this."""
