"""What messages call the programs of an application: the units under which systemd runs them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units of one application. Where it has none, messages say what is wrong and name no command."""

    worker: str = ""  # the word {queue} in it stands for the queue
    scheduler: str = ""
    target: str = ""  # of all of them together
    pauses: Mapping[str, str] = field(default_factory=dict)  # reason of a `Pause` -> what mends it, in half a sentence

    def restart_worker(self, queue: str) -> str:
        """Return what to append to the line about a worker that `queue` lacks."""
        return f": systemctl restart {self.worker.format(queue=queue)}" if self.worker else ""

    def restart_scheduler(self) -> str:
        """Return what to append to the line about a scheduler that is missing."""
        return f": systemctl restart {self.scheduler}" if self.scheduler else ""

    def restart_all(self) -> str:
        """Return what to append to the line about a setting that was to be mended first."""
        return f"; then systemctl restart {self.target}" if self.target else ""

    def mend_pause(self, reason: str) -> str:
        """Return what to append to the line about a worker that pauses."""
        return f"; {self.pauses[reason]}" if reason in self.pauses else ""
