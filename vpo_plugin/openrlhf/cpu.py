"""Run OpenRLHF 0.11 on a machine without CUDA, in every process of a run, with no file of the host edited.

The host calls CUDA directly in a few places. `install` replaces only those, in the process that calls it; each
replacement takes effect right after the host imports the module concerned. Machines with CUDA use none of this.
Symbols touched (OpenRLHF 0.11.1 and 0.11.2, torch 2.13):

=================================================== ==================================================================
symbol                                              why
=================================================== ==================================================================
`flash_attn.bert_padding`, `.utils.distributed` imported by `openrlhf.models.ring_attn_utils`, used only by
                                                    packed samples, which need the CUDA package
`torch.cuda` (five functions)                       called unconditionally around every forward and backward pass
`openrlhf...deepspeed.init_device_mesh`             requests the mesh on "cuda"
`DeepspeedStrategy.get_ds_train_config`             DeepSpeed's own Adam and its shared-memory all-reduce
`deepspeed.comm.torch.build_shm_op`                 (DeepSpeed 0.19) are compiled at first use: torch's replace them
`torch.distributed.rendezvous.TCPStore`             listens on every interface: now only on loopback if that is its host
`NaiveReplayBuffer.__init__`                        builds a `cuda:…` device
`ActorPPOTrainer._init_vllm_sync_group`             sync weights over NCCL: replaced by one transfer through Ray's
`ActorPPOTrainer.broadcast_to_vllm`                 object store
`RolloutRayActor`                                   gains `load_state`, which receives the weights, and caches prompts
                                                    in small blocks (`KV_BLOCK`)
`cpu_speed`                                         patches that only save time (see the table there)
=================================================== ==================================================================
"""

import contextlib
import ctypes
import functools
import importlib.machinery
import io
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import types
from typing import Any, NoReturn

import psutil
import wrapt

from vpo_plugin.locks import after_this_process, temporary_home
from vpo_plugin.openrlhf import cpu_speed

LOOPBACK = "127.0.0.1"

# Keeps a run with a private Ray off the network: Ray runs what it is sent, as this user.
PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for binding to loopback (ray/_private/ray_constants.py)
    "RAY_AUTH_MODE": "token",  # keeps out other users of this machine
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    "VLLM_HOST_IP": LOOPBACK,
}

# Defaults of the host's flags that fit one machine without CUDA; a flag that the user gives wins.
HOST_DEFAULTS = {
    "actor.num_gpus_per_node": 1,
    "ref.num_gpus_per_node": 1,
    "critic.num_gpus_per_node": 1,
    "reward.num_gpus_per_node": 1,
    "vllm.num_engines": 1,
    "vllm.enforce_eager": True,
    "vllm.sync_backend": "gloo",
    "vllm.gpu_memory_utilization": 0.3,
    "ds.attn_implementation": "sdpa",
}

# Flags of the host that are limited without CUDA: the highest value, and why.
HOST_LIMITS = {
    "ds.packing_samples": (False, "packed samples need flash-attn"),
    "train.dynamic_batch_enable": (False, "dynamic batches are packed samples, which need flash-attn"),
    "ds.ring_attn_size": (1, "ring attention needs flash-attn"),
    "ds.zero_stage": (2, "the engines need whole weights, but ZeRO 3 shards them"),
}

# Tokens of a block of an engine's key-value cache. Responses share the whole blocks of their prompt, and vLLM's default
# on a CPU, 128, is longer than many prompts.
KV_BLOCK = 32

# The host's actors each ask Ray for GPUs; without GPUs, Ray schedules with this number.
PRETEND_GPUS = 16

CONNECT_SECONDS = 2.0

ray_folder: str | None = None
"""The private Ray's folder, None before it starts."""

NOTICED_SECONDS = 20.0  # in which most calls of Ray fail once its raylet is dead
raylet_died = False
"""Whether the private Ray's only node ended before the run, and the run did not notice."""
_stopped = threading.Event()

# Gives Ray a few seconds to end by itself, and ends what is left: the processes whose TMPDIR is this run's folder, as
# no other run's is. A Ray worker that finds its raylet dead while it writes to it leaves its children behind (Ray 2.55,
# raylet_connection.cc, ShutdownIfLocalRayletDisconnected).
# Ray's agents blank the start of their environment with their titles, where `psutil.Process.environ` stops.
END_ALL = """
import shutil, sys, time
from pathlib import Path
import psutil
time.sleep(3)
for _ in range(20):  # a raylet may start a worker meanwhile
    found = []
    for process in psutil.process_iter():
        try:
            given = Path(f"/proc/{process.pid}/environ")
            held = given.read_bytes().split(b"\\0") if given.exists() else []
            if process.environ().get("TMPDIR") == sys.argv[1] or f"TMPDIR={sys.argv[1]}".encode() in held:
                process.kill()
                found.append(process)
        except (psutil.Error, OSError):
            pass
    if not found:
        break
    psutil.wait_procs(found, timeout=0.5)
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


def cuda_available() -> bool:
    """Whether this run has CUDA: on this machine, or on the Ray cluster that it joins.

    A cluster counts as having CUDA unless it was started with `VPO_DEVICE=cpu` in its environment.
    """
    import torch

    if os.environ.get("VPO_DEVICE") == "cpu":
        return False

    return torch.cuda.is_available() or joined_cluster() is not None


def own_gpus() -> int | None:
    """GPUs of the Ray that a run on this machine starts; None if it joins a cluster, or has no CUDA."""
    import torch

    return torch.cuda.device_count() if cuda_available() and joined_cluster() is None else None


def joined_cluster() -> str | None:
    """The Ray cluster that `ray.init()` joins, None if it starts one.

    `RAY_ADDRESS` names it (`local` means none). Otherwise it is a cluster that `ray start` started on this machine, if
    it answers.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return None if address == "local" else address
    from ray._private.utils import read_ray_address

    address = read_ray_address()
    if not address:
        return None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):  # a cluster that has ended
        return None
    return address


@functools.cache
def environment() -> dict[str, str]:
    """Variables that the engines, Ray and the tokenizers read at start-up; values set by the user win."""
    found = {
        "DS_ACCELERATOR": "cpu",
        "OMP_WAIT_POLICY": "passive",  # waiting threads leave their core to others
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process fewer for each engine
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # no idle workers: start-up is bound by imports
    }
    # Generation and training take turns, each with all cores.
    found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(cpu_speed.idle_cores())
    # torch compiles parts of vLLM with this compiler (torch/_inductor/config.py) and fails without it.
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        found["TORCHDYNAMO_DISABLE"] = "1"
    return found


def install() -> None:
    """Let this process import and run the host without CUDA. Call it before the host is imported."""
    for name, value in environment().items():
        os.environ.setdefault(name, value)
    _provide_flash_attn()
    for module, patch in (
        ("torch", _patch_torch),
        ("torch.distributed.rendezvous", _patch_rendezvous),
        ("deepspeed.comm.torch", _patch_deepspeed_comm),
        ("openrlhf.utils.deepspeed.deepspeed", _patch_strategy),
        ("openrlhf.trainer.ppo_utils.replay_buffer", _patch_replay_buffer),
        ("openrlhf.trainer.ray.ppo_actor", _patch_weight_sender),
        ("openrlhf.trainer.ray.ppo_actor", cpu_speed.patch_loader),
        ("openrlhf.models.actor", cpu_speed.patch_actor),
        ("openrlhf.trainer.ray.vllm_engine", _patch_engine),
    ):
        wrapt.register_post_import_hook(patch, module)


def _needs_cuda(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        "Packed samples need flash-attn, which needs CUDA: without CUDA, leave out --ds.packing_samples, "
        "--train.dynamic_batch_enable and --ds.ring_attn_size."
    )


def _provide_flash_attn() -> None:
    def module(name: str, **members: Any) -> None:
        stand_in = types.ModuleType(name)
        stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        stand_in.__path__ = []
        stand_in.__dict__.update(members)
        sys.modules[name] = stand_in

    module("flash_attn", __version__="0")
    module(
        "flash_attn.bert_padding",
        index_first_axis=_needs_cuda,
        pad_input=_needs_cuda,
        rearrange=_needs_cuda,
        unpad_input=_needs_cuda,
    )
    module("flash_attn.utils")
    module("flash_attn.utils.distributed", all_gather=_needs_cuda)


def _patch_torch(torch: Any) -> None:
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.manual_seed_all = lambda seed: None


def _patch_rendezvous(module: Any) -> None:
    store = module.TCPStore

    def local_store(*, host_name: str, port: int, is_master: bool, **more: Any) -> Any:
        if is_master and host_name in (LOOPBACK, "localhost"):
            listener = socket.create_server((LOOPBACK, port))
            port, more["master_listen_fd"] = listener.getsockname()[1], listener.detach()
        return store(host_name=host_name, port=port, is_master=is_master, **more)

    module.TCPStore = local_store


def _patch_deepspeed_comm(module: Any) -> None:
    module.build_shm_op = lambda: None


def _patch_strategy(module: Any) -> None:
    init_device_mesh = module.init_device_mesh
    module.init_device_mesh = lambda device_type, *args, **kwargs: init_device_mesh("cpu", *args, **kwargs)

    get_ds_train_config = module.DeepspeedStrategy.get_ds_train_config

    def with_torch_adam(self: Any, optim_dict: dict[str, Any] | None = None, **more: Any) -> Any:
        if optim_dict is not None and optim_dict["type"] == "AdamW":
            optim_dict["params"] |= {"torch_adam": True, "fused": True}
        return get_ds_train_config(self, optim_dict=optim_dict, **more)

    module.DeepspeedStrategy.get_ds_train_config = with_torch_adam


def _patch_replay_buffer(module: Any) -> None:
    original = module.NaiveReplayBuffer.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        torch = module.torch
        current_device, torch.cuda.current_device = torch.cuda.current_device, lambda: 0
        try:
            original(self, *args, **kwargs)
        finally:
            torch.cuda.current_device = current_device
        self.target_device = torch.device("cpu")

    module.NaiveReplayBuffer.__init__ = __init__


def _patch_weight_sender(module: Any) -> None:
    """Rank 0 of the actor puts its weights into Ray's object store once; every engine loads them from there."""

    def _init_vllm_sync_group(self: Any, backend: str) -> None:
        self._model_update_group = None

    def broadcast_to_vllm(self: Any) -> None:
        import ray
        import torch

        if torch.distributed.get_rank() == 0:
            state = {name: parameter.data for name, parameter in self.actor.model.module.named_parameters()}
            buffer = io.BytesIO()
            torch.save(state, buffer)
            reference = ray.put(buffer.getvalue())
            cached = getattr(self.strategy.args.vllm, "enable_prefix_caching", False)
            ray.get([engine.load_state.remote(reference, cached) for engine in self.vllm_engines])
        torch.distributed.barrier()

    module.ActorPPOTrainer._init_vllm_sync_group = _init_vllm_sync_group
    module.ActorPPOTrainer.broadcast_to_vllm = broadcast_to_vllm


def _patch_engine(module: Any) -> None:
    import ray

    async def small_blocks(self: Any, *args: Any, **kwargs: Any) -> None:
        await original(self, *args, block_size=KV_BLOCK, **kwargs)

    async def load_state(self: Any, state: bytes, cached: bool) -> None:
        await self.llm.collective_rpc(reload_weights, args=(state,))
        if cached and not await self.llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM still writes responses while its weights change, so it keeps the prompts that it has read with "
                "the old ones: an agent must wait for all its responses."
            )

    actor_class = module.RolloutRayActor.__ray_metadata__.modified_class
    original = actor_class.__init__
    actor_class.__init__, actor_class.load_state = small_blocks, load_state
    module.RolloutRayActor = ray.remote(actor_class)


def reload_weights(worker: Any, state: bytes) -> None:
    """Load saved weights into a vLLM worker.

    Uses `reload_weights`, not `load_weights`: vLLM's CPU kernels repack weights after loading, so new weights must
    take the whole loading path again (`vllm.v1.worker.gpu_model_runner`).
    """
    import torch

    worker.model_runner.reload_weights(weights_iterator=iter(torch.load(io.BytesIO(state)).items()))


def start_private_ray(runtime_env: dict[str, Any]) -> None:
    """Start a private Ray with free ports and its own folder, so that runs can share a machine.

    It listens on loopback only and accepts only processes that know its token, which are those that it starts. Orphans
    of the run (an engine whose Ray worker was killed) become children of this process, so that `stop_private_ray` finds
    them. If this process is killed, a watcher ends what is left.
    """
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config

    global ray_folder
    os.environ |= PRIVATE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")  # Ray may have been imported before: this reads the variables again (Ray 2.55)
    AuthenticationTokenLoader.instance().reset_cache()
    _adopt_orphans()
    ray_folder = temporary_home()
    after_this_process(END_ALL, ray_folder)
    ray.init(
        address="local",
        num_cpus=PRETEND_GPUS,
        num_gpus=PRETEND_GPUS,
        include_dashboard=False,
        object_store_memory=2**30,
        runtime_env=runtime_env,
        _temp_dir=ray_folder,
    )
    _stopped.clear()
    (raylet,) = (child for child in psutil.Process().children() if child.name() == "raylet")
    threading.Thread(target=_follow, args=[raylet], daemon=True).start()


def stop_private_ray() -> None:
    """Stop the private Ray, end all remaining processes of the run, and remove Ray's folder."""
    import ray

    _stopped.set()
    ray.shutdown()
    left = psutil.Process().children(recursive=True)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=5)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if ray_folder is not None:
        shutil.rmtree(ray_folder, ignore_errors=True)


def _follow(raylet: psutil.Process) -> None:
    """Interrupt the run by SIGTERM if its only node is gone: actors without a place would wait for another forever."""
    global raylet_died
    while raylet.is_running() and raylet.status() != psutil.STATUS_ZOMBIE:
        if _stopped.wait(1):
            return
    if not _stopped.wait(NOTICED_SECONDS):
        raylet_died = True
        os.kill(os.getpid(), signal.SIGTERM)


def _adopt_orphans() -> None:
    pr_set_child_subreaper = 36  # <linux/prctl.h>
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
