"""How long `import mailstrom_async` takes beyond the import of the four packages that it is given.

    python tests/bench/imports.py
    python tests/bench/imports.py --times 21

Prints JSON, milliseconds, each the median over fresh interpreters: `import_ms` for the import itself, loading little;
`names_ms` with what a program wants then, Config, Email, Mailstrom and SQLiteStorage, half of which is pydantic's own
loading of what it needs for models; and the processor time of both. The source is compiled before, as it is where a
package is installed.
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
took = {{"import_ms": time.perf_counter() - begun, "import_cpu_ms": time.process_time() - cpu}}
from mailstrom_async import Config, Email, Mailstrom, SQLiteStorage
took |= {{"names_ms": time.perf_counter() - begun, "names_cpu_ms": time.process_time() - cpu}}
print(json.dumps({{name: seconds * 1e3 for name, seconds in took.items()}}))
"""


def measure(times: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": compiled, "PYTHONPATH": str(Path(__file__).parents[2])}

        def once() -> dict[str, float]:
            command = [sys.executable, "-c", PROGRAM]
            told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
            took: dict[str, float] = json.loads(told.stdout)
            return took

        once()
        runs = [once() for _ in range(times)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7)
    print(json.dumps(measure(parser.parse_args().times)))


if __name__ == "__main__":
    main()
