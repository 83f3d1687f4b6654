"""How long `import mailstrom_async` takes beyond the import of the four packages that it is given.

    python tests/bench/imports.py
    python tests/bench/imports.py --times 21

Prints JSON: milliseconds of wall-clock and of processor time, each the median over fresh interpreters. The source is
compiled before, as it is where a package is installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

GIVEN = ("aiosmtplib", "aiodns", "anyio", "pydantic")
PROGRAM = f"""
import {", ".join(GIVEN)}
import json, time
begun, cpu = time.perf_counter(), time.process_time()
import mailstrom_async
print(json.dumps([(time.perf_counter() - begun) * 1e3, (time.process_time() - cpu) * 1e3]))
"""


def measure(times: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": compiled, "PYTHONPATH": str(Path(__file__).parents[2])}

        def once() -> list[float]:
            command = [sys.executable, "-c", PROGRAM]
            told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
            took: list[float] = json.loads(told.stdout)
            return took

        once()
        walls, cpus = zip(*(once() for _ in range(times)), strict=True)
    return {"import_ms": statistics.median(walls), "import_cpu_ms": statistics.median(cpus)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7)
    print(json.dumps(measure(parser.parse_args().times)))


if __name__ == "__main__":
    main()
