"""What a Redis of a given configuration can lose of what it has acknowledged: three lines of `redisq doctor`."""

from collections.abc import Mapping
from typing import Any, Literal

from redis import Redis

from redisq.server import Finding, read_config

Facts = Mapping[str, Any]
Verdict = tuple[Literal["ok", "warning"], str]


def inspect_durability(client: "Redis", healing: str, *, sentinels: bool = False) -> list[Finding]:
    """Return what a crash, a power cut and a failover of this Redis can lose. Raise `redis.RedisError` when it is away.

    `healing` says in half a sentence what brings lost jobs back; `sentinels`, whether they tell which server is the
    master, which INFO does not.
    """
    info: dict[str, Any] = client.info() | {"sentinels": sentinels}
    # Without an answer the lines say what to ask.
    config = read_config(client, "*append*", "min-replicas-*", "save")
    return losses(info, config, healing)


def losses(info: Facts, config: Facts, healing: str) -> list[Finding]:
    """Return a finding each for a crash of Redis, a power cut and a failover, from its INFO and CONFIG GET.

    A setting that `config` lacks counts as not known.
    """
    found = (("a crash of redis", _crash), ("a power cut", _power_cut), ("a failover", _failover))
    lines: list[Finding] = []
    for subject, judge in found:
        level, text = judge(info, config)
        healed = f"; {healing}" if not text.startswith("loses nothing") else ""
        lines.append(Finding(level, subject, text + healed))
    return lines


def _crash(info: Facts, config: Facts) -> Verdict:
    if not info.get("aof_enabled"):
        return _without_aof(info, config)
    if info.get("aof_last_write_status") != "ok":
        return "warning", "loses what came since its disk took the last write"
    match config.get("appendfsync"):
        case "always" | "no":
            return "ok", "loses nothing: what was acknowledged is in the file"
    # A write waits in memory while another thread syncs the file, and is acknowledged all the same.
    delayed = info.get("aof_delayed_fsync", 0)
    return "ok", f"loses what came while the disk was syncing, at most 2 s (so slow a disk was met {delayed} times)"


def _power_cut(info: Facts, config: Facts) -> Verdict:
    if not info.get("aof_enabled"):
        return _without_aof(info, config)
    if config.get("no-appendfsync-on-rewrite") == "yes":
        return "warning", "loses about 30 s while the AOF is rewritten: set no-appendfsync-on-rewrite no"
    match config.get("appendfsync"):
        case "always":
            return "ok", "loses nothing that the disk has told to be safe"
        case "everysec":
            return "ok", "loses what came in the last second, at a slow disk in the last two"
        case "no":
            return (
                "warning",
                "loses what the kernel has not written, about 30 s: set appendfsync everysec or always",
            )
    ask = "CONFIG GET is refused: ask whoever keeps this Redis for appendfsync"
    return "warning", f"{ask}: always loses nothing, everysec up to 2 s, no about 30 s"


def _without_aof(info: Facts, config: Facts) -> Verdict:
    if config.get("save") == "":
        return "warning", "loses everything: there is neither AOF nor snapshot; set appendonly yes"
    changes = info.get("rdb_changes_since_last_save", 0)
    return "warning", f"loses what came after the last snapshot, {changes} changes by now; set appendonly yes"


def _failover(info: Facts, config: Facts) -> Verdict:
    if info.get("role") != "master":
        return "warning", "cannot be told by a replica: ask its master"
    # Nor is one connected to a master that is cut off, in whose place the sentinels put a replica.
    if not info.get("connected_slaves") and not info.get("sentinels"):
        until = "its slots are" if info.get("cluster_enabled") else "Redis is"
        return "ok", f"loses nothing, for no replica is connected to take over; {until} down until this node is back"
    # INFO counts good replicas only while both settings are in force.
    if "min_slaves_good_slaves" not in info:
        remedy = "set min-replicas-to-write 1 and min-replicas-max-lag 2, with two replicas at least"
        return "warning", f"loses what the old master acknowledged while cut off from its replicas: {remedy}"
    lag = config.get("min-replicas-max-lag")
    seconds = f"the last {int(lag) + 1} s" if lag else "min-replicas-max-lag and a second (ask for it)"
    return "ok", f"loses at most {seconds}: after that a master without enough replicas refuses writes"
