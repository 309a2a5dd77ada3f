"""Every environment variable of distft. DISTFT_SITE is for users; the others are private to our own processes."""

from __future__ import annotations

SITE = "DISTFT_SITE"  # the site profile of `submit`, if none is named

# From a light parent to its ranks.
ATTEMPT = "DISTFT_ATTEMPT"  # number of the attempt
TOKEN = "DISTFT_TOKEN"  # of the lease: a rank that finds another one there writes nothing more
ALLOW = "DISTFT_ALLOW"  # what may differ from earlier attempts, separated by commas; from the batch script too
PROFILE = "DISTFT_PROFILE"  # how many steps to profile, and whether torch's trace is kept; from the batch script too
DEADLINE = "DISTFT_DEADLINE"  # when the job's time limit ends it, in seconds since the epoch
WORK = "DISTFT_WORK"  # "export": not to train, but to write final/ when all ranks have ended
PARENT = "DISTFT_PARENT"  # process id of the parent: a process dies with it

# From a light parent to its fork server and ranks: numbers of open descriptors.
FORKSERVER_FD = "DISTFT_FORKSERVER_FD"  # socket for orders to the fork server, and news from it
LISTEN_FD = "DISTFT_LISTEN_FD"  # listening socket of the rendezvous, for rank 0
CONSOLE_FD = "DISTFT_CONSOLE_FD"  # the user's terminal, for rank 0
LOCK_FD = "DISTFT_LOCK_FD"  # the run's lock, which outlives a killed parent
PULSE_FD = "DISTFT_PULSE_FD"  # memory for signs of life

# From the batch script to the light parents and the policy.
RUN_DIR = "DISTFT_RUN_DIR"  # the run folder
LAUNCHER = "DISTFT_LAUNCHER"  # the name under which the launcher was found; run.json keeps it
HOSTS = "DISTFT_HOSTS"  # the job's nodes, separated by commas; the first leads
RANKS = "DISTFT_RANKS"  # ranks per node; by default one per GPU
ENDS = "DISTFT_ENDS"  # when the time limit ends the job, in seconds since the epoch
SIGNAL_LEAD = "DISTFT_SIGNAL_LEAD"  # seconds between the signal and the time limit
MAX_RESTARTS = "DISTFT_MAX_RESTARTS"  # restarts of the ranks within the job
OUTPUT = "DISTFT_OUTPUT"  # FIRST-LAST: the bytes of the job's output that this start of it wrote up to the end of srun

# From `predict`, `eval` and `submit --check` to their ranks.
PASS = "DISTFT_PASS"  # the parent puts the parts together
CHECKPOINT = "DISTFT_CHECKPOINT"  # the checkpoint that the parent chose
SHARDS = "DISTFT_SHARDS"  # how many ranks hold one model together
CHECK = "DISTFT_CHECK"  # folder in which the ranks of a diagnostic job meet

FAILPOINT = "DISTFT_FAILPOINT"  # tests only: RANK:PLACE at which a rank is killed
