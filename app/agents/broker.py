"""What lies in the broker, and the scripts that change several of its keys at once.

========================  ======  ===========================================================================
``<queue>``               list    messages that wait; pushed on the left, taken from the right
``unacked:<node>:<queue>`` list   messages that a worker holds: taken from ``<queue>`` in one step, never in
                                  its memory alone
``unacked_idle:<node>:<queue>`` set  digests of those among them that no process runs (app/agents/deliveries.py)
``unacked_owner:<node>``  zset    the worker that has this name, by the time of its last sign of life
``unacked_revoked``       zset    tasks and stamps that were revoked, by the time (app/agents/revocations.py)
``unacked_leases``        zset    the lists above, by the time of their worker's last sign of life
``accepted``              hash    task id -> number of its messages in the broker; the answer to "is it still
                                  on its way?"
``dead_letters``          list    messages that no worker will run, each with the reason
``deferred:<queue>``      list    messages that an operator has taken out of ``<queue>`` for a while; still accepted
``idempotency:<digest>``  string  the task that a client's Idempotency-Key has made
``figures``               hash    what workers count, for ever (app/agents/figures.py)
``figures:minute:<n>``    hash    the same of one minute since 1970, summed over all tasks; kept for two hours
``failures``              list    the last runs that failed, newest first
``workers``               hash    node -> time of its last report, and its state
``alerts``                hash    what Alertmanager says (app/api/alerts.py)
========================  ======  ===========================================================================

A script runs as a whole or not at all, and its writes reach the append-only file together. Those of the workers also
run when Redis has no memory left: without them it could never get any back.
"""

from app.agents.scripts import register_script

ACCEPTED = "accepted"
DEAD_LETTERS = "dead_letters"
LEASES = "unacked_leases"
UNACKED = "unacked:"
IDLE = "unacked_idle:"
OWNER = "unacked_owner:"
DEFERRED = "deferred:"
IDEMPOTENCY = "idempotency:"
ALERTS = "alerts"

# KEYS queue, accepted[, idempotency key]; ARGV message, task id[, value, seconds to keep].
# Returns the idempotency key's earlier value, or nothing when the message was pushed.
ENQUEUE = register_script("""
if KEYS[3] then
  local earlier = redis.call('SET', KEYS[3], ARGV[3], 'NX', 'GET', 'EX', ARGV[4])
  if earlier then return earlier end
end
redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
redis.call('LPUSH', KEYS[1], ARGV[1])
return false
""")

# KEYS and ARGV as for ENQUEUE, for a message that Redis may have forgotten. Nothing happens when it is there.
ENQUEUE_AGAIN = register_script("""
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return 0 end
if KEYS[3] then redis.call('SET', KEYS[3], ARGV[3], 'NX', 'EX', ARGV[4]) end
redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
redis.call('LPUSH', KEYS[1], ARGV[1])
return 1
""")

# KEYS unacked list, accepted; ARGV message, task id. Nothing happens when the message is not there any more.
ACKNOWLEDGE = register_script("""#!lua flags=allow-oom
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 and redis.call('HINCRBY', KEYS[2], ARGV[2], -1) <= 0 then
  redis.call('HDEL', KEYS[2], ARGV[2])
end
""")

# KEYS unacked list, queue; ARGV message, the message with what changed of it. It will be the next to be taken.
REQUEUE = register_script("""#!lua flags=allow-oom
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
  redis.call('RPUSH', KEYS[2], ARGV[2])
  return 1
end
return 0
""")

# KEYS unacked list, dead letters, accepted; ARGV message, dead letter, task id.
BURY = register_script("""#!lua flags=allow-oom
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
  redis.call('LPUSH', KEYS[2], ARGV[2])
  if redis.call('HINCRBY', KEYS[3], ARGV[3], -1) <= 0 then redis.call('HDEL', KEYS[3], ARGV[3]) end
end
""")

# KEYS list, other list; ARGV messages, the oldest first. Returns how many were still there to be moved.
MOVE = register_script("""#!lua flags=allow-oom
local moved = 0
for _, message in ipairs(ARGV) do
  if redis.call('LREM', KEYS[1], -1, message) == 1 then
    redis.call('LPUSH', KEYS[2], message)
    moved = moved + 1
  end
end
return moved
""")

# KEYS list, other list, accepted; ARGV entry, the message that takes its place, the id of a task to be accepted again.
MOVE_ANEW = register_script("""#!lua flags=allow-oom
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 1 then
  redis.call('LPUSH', KEYS[2], ARGV[2])
  if ARGV[3] ~= '' then redis.call('HINCRBY', KEYS[3], ARGV[3], 1) end
  return 1
end
return 0
""")

# KEYS leases, then the unacked lists of a living worker, then keys that must not look idle where Redis evicts.
# ARGV number of lists. Redis's own clock counts: hosts may disagree.
RENEW = register_script("""#!lua flags=allow-oom
local time = redis.call('TIME')
for i = 2, ARGV[1] + 1 do redis.call('ZADD', KEYS[1], time[1] + time[2] / 1e6, KEYS[i]) end
redis.call('TOUCH', unpack(KEYS))
""")

# KEYS owner of a name; ARGV who wants it or has it, and who is known to be dead. Returns another owner and the time of
# its last sign of life, or nothing when the name is ours from now on.
OWN = register_script("""#!lua flags=allow-oom
local found = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
if found[1] and found[1] ~= ARGV[1] and found[1] ~= ARGV[2] then return found end
local time = redis.call('TIME')
redis.call('DEL', KEYS[1])
redis.call('ZADD', KEYS[1], time[1] + time[2] / 1e6, ARGV[1])
redis.call('EXPIRE', KEYS[1], 86400)
return false
""")

# KEYS leases, unacked list, its idle set. The last one out forgets the lease.
FORGET = register_script("""
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], KEYS[2])
  redis.call('DEL', KEYS[3])
end
""")

# KEYS idle set; ARGV how many digests are new in it, these, and those that are not in it any more.
NOTE_IDLE = register_script("""#!lua flags=allow-oom
for i = 2, #ARGV do redis.call(i <= ARGV[1] + 1 and 'SADD' or 'SREM', KEYS[1], ARGV[i]) end
""")


def unacked_list(node: str, queue: str) -> str:
    """Return the name of the list of messages that ``node`` has taken from ``queue``."""
    return f"{UNACKED}{node}:{queue}"


def idle_set(unacked: str) -> str:
    """Return the name of the set that tells which messages of an unacked list no process runs."""
    return f"{IDLE}{unacked.removeprefix(UNACKED)}"


def node_of(unacked: str) -> str:
    """Return the worker whose unacked list this is."""
    return unacked.removeprefix(UNACKED).partition(":")[0]


def queue_of(unacked: str) -> str:
    """Return the queue that the messages of an unacked list came from."""
    return unacked.removeprefix(UNACKED).partition(":")[2]


def deferred_list(queue: str) -> str:
    """Return the name of the list of messages that were taken out of ``queue`` for a while."""
    return f"{DEFERRED}{queue}"
