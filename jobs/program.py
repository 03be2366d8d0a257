"""`redisq`: the command line of the queue, completed with this application's kinds and commands."""

from redisq.cli import Parts, Program, Units

PROGRAM = Program(
    Parts(
        queues=("default", "backfill"),
        registry="jobs.app:application.registry",
        settings="jobs.settings:JobSettings",
        schedules="jobs.schedules:SCHEDULES",
        option_names={"organizationId": "org", "integrationId": "integration"},
        commands={
            "org": ("jobs.commands.org:org", "List the organizations."),
            "integration": ("jobs.commands.integration:integration", "Connect, list, show, change and remove pages."),
            "metric": ("jobs.commands.metric:metric", "List, add and retire the metrics that providers are asked for."),
            "coverage": ("jobs.commands.coverage:coverage", "Show what became of every page's every day."),
            "numbers": ("jobs.commands.numbers:numbers", "Show what the pages add up to, and the changes."),
            "report": ("jobs.commands.report:report_", "Show one day: sums, what is missing, who must act."),
            "backfill": ("jobs.commands.backfill:backfill", "Ingest a range of past days."),
            "import": ("jobs.commands.import_:import_", "Import numbers that somebody exported."),
            "db": ("jobs.commands.schema:db", "Keep the schema of PostgreSQL."),
            "demo": ("jobs.commands.demo:demo", "Watch the whole system work on synthetic pages."),
        },
        units=Units(
            worker="redisq-worker@{queue}",
            scheduler="redisq-scheduler",
            target="redisq.target",
            pauses={"database_away": "`redisq doctor` says why; if it is down: systemctl restart postgresql"},
        ),
        before_enqueue="jobs.commands.hooks:note_wish",
        absent="jobs.commands.absent:tell",
        before_removal="jobs.commands.hooks:abandon",
        healing="reconcile puts each lost (integration, date) back from the ledger, within five minutes",
        checks="jobs.commands.checks:CHECKS",
    )
)


def main() -> None:
    """Run the command that argv names, and exit with its code."""
    PROGRAM(prog_name="redisq")
