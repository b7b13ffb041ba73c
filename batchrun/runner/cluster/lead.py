"""A run with workers: joins the cluster, waits for workers, and leads them to the end."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from functools import cache

from batchrun.executors.fleet import Fleet
from batchrun.executors.local_cluster import LocalCluster
from batchrun.executors.worker_process import Cluster
from batchrun.job.credentials import Server, secret_variables
from batchrun.remote.access import SECRETS
from batchrun.runner.cluster.driver import Driver
from batchrun.runner.cluster.leases import planned_rows
from batchrun.runner.cluster.worker import WorkerSetup, worker_setup
from batchrun.runner.engine import Executor, Run

_LEAVE_S = 30.0


async def lead_run(
    run: Run, servers: Mapping[str | None, Server], check: Callable[[], None]
) -> None:
    """Completes every remaining row, in the journals of workers; as `Run.send`.

    `check`: raises if the run should stop before anything is sent.
    Raises `JobError` if there is no cluster or a worker cannot take part, `RunStopped` if no
    worker comes, and what `check` raises.
    """
    run.tell("joining the cluster")
    cluster = await asyncio.to_thread(_join_ray, run)
    try:
        driver = _make_driver(run, cluster, servers)
        await driver.gather(lambda message: run.tell("starting workers", message), check)

        async def make() -> Executor:
            return driver

        try:
            await run.lead(make)
        finally:
            driver.end_all()  # where they never began
    finally:
        with contextlib.suppress(TimeoutError):  # the run's end does not depend on it
            await asyncio.wait_for(asyncio.to_thread(cluster.close), _LEAVE_S)


def _join_ray(run: Run) -> Cluster:
    """Joins the cluster that the job names, or starts one. Raises `JobError`."""
    settings, local = run.job.cluster, None
    address = settings.address or os.environ.get("RAY_ADDRESS") or "auto"
    cpus = settings.cpus_per_worker
    if address == "local":
        cores = max(os.cpu_count() or 1, cpus * (settings.workers or 1))
        local = LocalCluster(run.run_dir.path, cores, (*secret_variables(run.job), *SECRETS))
        address = local.address
    from batchrun.executors.ray import RayCluster  # noqa: PLC0415 - an extra; takes a second

    return RayCluster(address, cpus, local)


def _make_driver(run: Run, cluster: Cluster, servers: Mapping[str | None, Server]) -> Driver:
    job, plan = run.job, run.plan

    @cache
    def common() -> WorkerSetup:
        return worker_setup(
            job,
            plan,
            run.run_dir,
            run.record,
            in_flight=run.most_in_flight,
            silence_s=job.cluster.silence_s,
        )

    def setup() -> WorkerSetup:
        return common().of(run.run_dir.new_writer())

    fleet = Fleet(planned_rows(plan), job.limits, run.most_in_flight, run.budgets)
    return Driver(cluster, fleet, run, setup, servers)
