#!/usr/bin/env bash
# torch.distributed over gloo: all_reduce adds each part of a tensor in another order.
#
# Packages   torch 2.13.0
# Behaviour  Every rank holds a tensor whose elements are all one number, and the sums are not all
#            one number. The tensor is cut into as many parts as there are ranks, and each part's
#            addition begins at another rank. So which bits a gradient has depends on where in the
#            buffer it lies: on how parameters are put together into buckets, and on what else is in
#            them. Two ranks add two numbers, whose order does not matter.
# Seen       2 ranks, 1000 equal elements: 100000000 from 0
#            3 ranks, 1000 equal elements: 0 from 0, 1 from 334, 0 from 668
#            4 ranks, 1000 equal elements: 0 from 0, 1 from 250, 0 from 500, 0.5 from 750
# Expected   Equal elements have equal sums: the order of the ranks may be any, but one for all.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/sums.py" <<'PY'
import os
import socket
import subprocess
import sys

SEEN = {2: "100000000 from 0", 3: "0 from 0, 1 from 334, 0 from 668",
        4: "0 from 0, 1 from 250, 0 from 500, 0.5 from 750"}

if len(sys.argv) == 1:
    for size in SEEN:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        given = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        given |= {"WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen([sys.executable, __file__, "rank"], env=given | {"RANK": str(rank)})
            for rank in range(size)
        ]
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    sys.exit()

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
mine = torch.full((1000,), (1e8, 1.0, -1e8, 0.5)[rank])
dist.all_reduce(mine)
starts = [0, *((mine[1:] != mine[:-1]).nonzero().flatten() + 1).tolist()]
dist.barrier()
dist.destroy_process_group()
if rank == 0:
    sums = ", ".join(f"{float(mine[at]):.9g} from {at}" for at in starts)
    print(f"{size} ranks, 1000 equal elements: {sums}", flush=True)
    assert sums == SEEN[size]
PY
"$folder/venv/bin/python" "$folder/sums.py"
