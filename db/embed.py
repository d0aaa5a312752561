#!/usr/bin/python3
# SPDX-License-Identifier: ISC
"""Writes the migrations as a C array: embed.py OUTPUT FILE..."""
import pathlib
import sys

output, files = sys.argv[1], sorted(map(pathlib.Path, sys.argv[2:]))
numbers = [int(path.stem.split("_", 1)[0]) for path in files]
if numbers != list(range(1, len(files) + 1)):
    sys.exit(f"migrations are numbered from 1 without gaps, not {numbers}")
with open(output, "w") as out:
    out.write('/* Made from db/schema by db/embed.py. */\n#include "db/migrate.h"\n')
    out.write("const struct migration migrations[] = {\n")
    for path in files:
        octets = ",".join(str(b) for b in path.read_bytes())
        number, name = path.stem.split("_", 1)
        out.write(f'{{{int(number)}, "{name}", (const char[]){{{octets},0}}}},\n')
    out.write("};\n")
    out.write(f"const unsigned migration_count = {len(files)};\n")
