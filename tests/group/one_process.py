"""A process of a group without devices, as a program: it joins, says so, and waits for what never comes.

python one_process.py NUM_PROCESSES PROCESS_ID PORT
"""

import sys
import threading

from sarathi_jax.errors import GroupError
from sarathi_jax.group.admission import admit, join
from sarathi_jax.group.follower import Follower
from sarathi_jax.group.leader import Leader
from sarathi_jax.group.place import LOOPBACK, Place

KEY = b"a key that all of them have"


def say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


place = Place(int(sys.argv[1]), int(sys.argv[2]), LOOPBACK, int(sys.argv[3]))
if place.is_leader:
    leader = Leader(admit(place, KEY))
    leader.mark_ready()
    say_ready()
    try:
        leader.loss.run(threading.Event().wait)  # a device whose other end is gone
    except GroupError as error:
        sys.exit(f"got {error}")
else:
    Follower(join(place, KEY), place.process_id)
    say_ready()
    threading.Event().wait()
