"""Running a program that nobody trusts, with limits; the standard library alone, for a bare Python.

In our process `run.py` begins another interpreter with `launcher.py`. That makes the room the
program runs in: of its own in namespaces (`namespaces.py`), or a part of this one fenced by filters
(`filters.py`). Inside, `referee.py` begins and ends the processes of the program, `program.py` is
what runs in them. What the program says is compared with the right answers in our process.
"""
