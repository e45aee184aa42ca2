"""Makes small.db, the fixture of src/corpora/sqlite.rs, with Python's own sqlite3."""

import pathlib
import sqlite3

path = pathlib.Path(__file__).with_name("small.db")
path.unlink(missing_ok=True)
database = sqlite3.connect(path)
database.execute("PRAGMA page_size = 512")
database.execute("CREATE TABLE other (a INTEGER)")
database.execute("CREATE TABLE texts (no INTEGER PRIMARY KEY, long TEXT, number REAL, short TEXT)")
for i in range(1, 111):
    text = None if i % 10 == 0 else f"row {i} " + "é" * (i * 7 % 330)
    database.execute("INSERT INTO texts VALUES (?, ?, ?, ?)", (i, text, i / 7, f"b{i}"))
database.commit()
database.close()
