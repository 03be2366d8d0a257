"""Takes jobs through the queue, from enqueue to ack, a hundred at a time: `... -m tests.through_the_queue URL COUNT`.

Imports no more than that needs, for valgrind counts that, too.
"""

import sys

from redisq import Job, Queue, Settings, connect


def main(url: str, count: int) -> None:
    queue = Queue(connect(Settings(redis_url=url)), "default")
    page = {"organizationId": "acme", "integrationId": "page-1", "date": "2026-01-01"}
    queue.enqueue_many([Job(f"nothing:{number}", "nothing", page) for number in range(count)])
    for _ in range(count // 100):
        [claimed] = queue.send([queue.claim("w", 100)])
        queue.send([queue.ack("w", [(one.id, one.token) for one in claimed])])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
