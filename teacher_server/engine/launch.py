"""Starts the engines that the command line asks for, each in a process of its own."""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor

from teacher_server.config import EngineConfig
from teacher_server.engine.engine_group import EngineGroup
from teacher_server.engine.remote_engine import RemoteEngine

LaunchedEngine = RemoteEngine | EngineGroup
"""One engine, or several behind one face."""


def launch_engines(options: argparse.Namespace, config: EngineConfig) -> LaunchedEngine:
    """Starts them all at once and waits until each has loaded and proved the teacher.

    Raises:
        ValueError: one could not, or they loaded different weights; none is left then.
    """
    if not options.devices:
        return RemoteEngine.launch(options, config)
    arguments = [_of_device(options, name) for name in options.devices]
    with ThreadPoolExecutor(len(arguments)) as pool:
        launches = [pool.submit(RemoteEngine.launch, one, config) for one in arguments]
    engines = [launch.result() for launch in launches if launch.exception() is None]
    try:
        for launch in launches:
            launch.result()
        return EngineGroup(engines)
    except BaseException:
        for engine in engines:
            engine.stop()
        raise


def _of_device(options: argparse.Namespace, device: str) -> argparse.Namespace:
    """The options of one engine. Those on CPUs share the cores, if nothing else is said."""
    num_threads = options.num_threads
    if not num_threads and device == "cpu":
        num_threads = max(1, len(os.sched_getaffinity(0)) // options.devices.count("cpu"))
    changes = {"device": device, "devices": [], "num_threads": num_threads}
    return argparse.Namespace(**vars(options) | changes)
