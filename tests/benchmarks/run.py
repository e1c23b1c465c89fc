# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make bench`: run all or the named benchmarks. They only measure, without assertions, and print Markdown tables."""

from __future__ import annotations

import argparse
import importlib
import os
import platform

BENCHMARKS = ["libvirt", "vsphere", "proxmox"]


def main() -> None:
    modules = {name: importlib.import_module(f"bench_{name}") for name in BENCHMARKS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(BENCHMARKS)} (all)")
    peers = parser.add_argument_group("what the others are measured with, unless it is libvirt")
    peers.add_argument("--peer-vms", type=int, default=20, metavar="N", help="how many VMs the peers get besides one (20)")
    peers.add_argument(
        "--peer-forks", type=int, default=0, metavar="N", help="a host for each VM of the peers, N at a time (a loop)"
    )
    for name, module in modules.items():
        module.add_options(parser.add_argument_group(name))
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in modules]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]}")
    if options.peer_vms < 1:
        parser.error("--peer-vms: at least one")
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}", flush=True)
    for name in options.names or BENCHMARKS:
        modules[name].run(options)


if __name__ == "__main__":
    main()
