"""Action plugin: brings the start cache of a host from the store of the controller, or to it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.operate.start_cache_store import Record, Store, describe_start

Result = dict[str, Any]


class ActionModule(ActionBase):
    """``fleet_start_cache:`` restores, promotes or discards; the module ``start_cache`` is its half on the host.

    ``restored`` returns ``origin``: ``cache`` is ``own`` if the host has a cache, ``store`` if it gets one now, and
    ``none``. The other two states take it, since what they do depends on what the start began with.

    ``exists``, whether the host has a cache, and ``seconds``, how long its start took, are what is known already: each
    saves a question.

    Only a cache that a start has compiled from nothing is promoted: requests may have changed an older one, and what is
    promoted is code that runs on equal hosts. A cache saves time only, so one that cannot be copied is a warning.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"path", "store", "state", "owner", "group", "origin", "times", "exists", "seconds"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Result:
        """Sets the state of the cache; the result reports the change."""
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        self._vars = task_vars or {}
        self._path = str(arguments["path"])
        self._key = Path(self._path).name
        self._store = Store(Path(str(arguments["store"])))
        self._account = {name: arguments[name] for name in ("owner", "group") if name in arguments}
        states = {"restored": self._restore, "promoted": self._promote, "discarded": self._discard}
        if arguments.get("state") not in states:
            return {**result, "failed": True, "msg": f"state is {arguments.get('state')!r}, not {', '.join(states)}"}
        try:
            return {**result, **states[arguments["state"]]()}
        except FleetError as fault:
            return {**result, "failed": True, "msg": str(fault)}

    def _on_host(self, state: str, **arguments: Any) -> Result:
        """Runs the module on the host.

        Raises:
            FleetError: it has failed.
        """
        done: Result = self._execute_module(
            module_name="start_cache",
            module_args={"path": self._path, "state": state, **arguments},
            task_vars=self._vars,
        )
        if done.get("failed"):
            raise FleetError(str(done.get("msg")), "correct it and run again", code=ErrorCode.WORK_FAILED)
        return done

    def _restore(self) -> Result:
        exists = self._task.args.get("exists")
        if self._on_host("inspected")["exists"] if exists is None else exists:
            return {"changed": False, "origin": {"cache": "own"}, "msg": "the host has its own cache"}
        record = self._store.read_record(self._key)
        if record is None:
            return {"changed": False, "origin": {"cache": "none"}, "msg": "no equal host has left a cache"}
        if not self._store.verify_archive(record):
            # Without the record the first equal host that starts leaves another archive.
            if not self._task.check_mode:
                self._store.remove_record(record)
            msg = f"the archive {self._store.archive(record)} has another digest: it is not used"
            return {"changed": False, "origin": {"cache": "none"}, "msg": msg}
        origin = {"cache": "store", "record": asdict(record)}
        diff = {"before": "", "after": f"{self._path} of {record.host}, {record.bytes} bytes, {record.sha256}\n"}
        if not self._task.check_mode:
            archive = self._connection._shell.join_path(self._make_tmp_path(), "start-cache.tar.gz")
            self._transfer_file(str(self._store.archive(record)), archive)  # type: ignore[no-untyped-call, unused-ignore]
            try:
                unpacked = self._on_host("unpacked", archive=archive, sha256=record.sha256, **self._account)
                if not unpacked["changed"]:
                    return {"changed": False, "origin": {"cache": "own"}, "msg": "the host has its own cache"}
            except FleetError as fault:
                return {"changed": False, "origin": {"cache": "own"}, **_warning("not copied", fault)}
        return {"changed": True, "origin": origin, "msg": f"from {record.host}", "diff": diff}

    def _promote(self) -> Result:
        cache, record = self._origin()
        try:
            seconds = self._task.args.get("seconds")
            if seconds is None:
                seconds = self._on_host("inspected", times=self._task.args.get("times") or [])["seconds"]
            if seconds is None:
                return {"changed": False, "msg": "no instance has started"}
            msg = describe_start(float(seconds), cache, record)
            if cache != "none" or self._store.read_record(self._key):
                return {"changed": False, "msg": msg}
            if self._task.check_mode:
                return {"changed": True, "msg": msg}
            with self._store.claim(self._key) as claimed:
                # An equal host of the same batch may have been first.
                if not claimed or self._store.read_record(self._key):
                    return {"changed": False, "msg": msg}
                return {"changed": self._keep(float(seconds)), "msg": msg}
        except FleetError as fault:
            return {"changed": False, **_warning("not kept for equal hosts", fault)}

    def _keep(self, cold_start_seconds: float) -> bool:
        archive = self._connection._shell.join_path(self._make_tmp_path(), "start-cache.tar.gz")
        packed = self._on_host("packed", archive=archive, **self._account)
        if not packed["exists"]:
            return False
        host = str(self._vars["inventory_hostname"])
        record = Record(self._key, packed["sha256"], packed["bytes"], host, cold_start_seconds)
        with self._store.incoming_archive() as incoming:
            self._connection.fetch_file(archive, str(incoming))
            self._store.keep(incoming, record)
        return True

    def _discard(self) -> Result:
        cache, record = self._origin()
        if cache == "own":
            return {"changed": False, "msg": "the host keeps its cache: it has started with it before"}
        removed = self._on_host("absent")
        if record and not self._task.check_mode:
            self._store.remove_record(record)
        source = (
            f"the cache of {record.host} was used and is removed: run again"
            if record
            else "the cache that it compiled is removed"
        )
        return {"changed": bool(removed["changed"] or record), "msg": source, "diff": removed["diff"]}

    def _origin(self) -> tuple[str, Record | None]:
        origin = self._task.args.get("origin") or {}
        record = origin.get("record")
        return str(origin.get("cache", "own")), Record(**record) if record else None


def _warning(what: str, fault: FleetError) -> Result:
    msg = f"the start cache was {what}: {fault}"
    return {"msg": msg, "warnings": [msg]}
