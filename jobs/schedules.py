"""When jobs run by themselves, unless the operator's file says otherwise."""

from redisq import Schedule

# Apart from the handlers, which bring clients of everything: `redisq schedule` needs none of them.
SCHEDULES = (
    # Facebook's day ends at 07:00 or 08:00 UTC; its numbers are there some hours later.
    Schedule(name="daily", cron="0 13 * * *", kind="plan", payload={"date": "{date-1}"}, missed="all"),
    Schedule(name="reconcile", cron="*/5 * * * *", kind="reconcile", missed="latest"),
)
