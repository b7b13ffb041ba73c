"""The tuned constants of the limits, in one table: what each does, and what it rests on.

(m) measured: the value came out best, or the best of those tried, against the hidden limits of
    tests/pacing (random servers in virtual time) and of `make bench-pacing` (over a socket).
(c) chosen: plausible, and nothing showed that another value would do better.
Rates are a second, unless a name says otherwise.
"""

# Spacing of starts
LATE_S = 0.05  # (c) loop clocks tick in milliseconds, and timers come late: so much is made up for
EARLY_S = 0.0005  # (c) timers of less than that are none: the loop would spin

# The user's limits a minute
MINUTE_S = 60.0
REQUESTS_MINUTE_S = 60.3  # (m) so that a jittering network cannot push two minutes into one
TOKENS_LATE_S = 2.0  # (c) a large need waits for room in the minute: so much is made up for
ROUNDED_S = 1e-6  # quotients and sums of times are a little off
MERGED_S = 0.01  # (c) starts within it are one entry
ALLOWANCE_FAST = 1.03  # (m) times a worker's even part of the rate; the allowance holds it back

# Advertised limits
BELOW_ADVERTISED = 0.995  # (m) of the limit, where the server does not say what remains
# Where it does, the rest is used too: from a little below the rate, where nothing remains, to a
# little above it, where all does.
EMPTY_FACTOR = 0.99  # (m)
FULL_FACTOR = 0.05  # (m) added to it
FULL_LEAST = 20.0  # (c) requests or tokens that a full bucket must hold to say anything ...
FULL_SHARE = 0.005  # (c) ... and this share of the limit
MOST_HEADERS = 8  # (c) of one scope
STRIKES = 2  # (c) refusals in spite of the advertised limit are borne, ...
STRIKE_REQUESTS = 60  # (c) ... one for so many requests; ...
STRIKE_CUT = 0.97  # (m) ... each one more cuts the rate to this
BELOW_SHORT = 0.95  # (m) of a limit by the second or so: one refusal costs its whole window
SHORT_WINDOW_S = 20.0  # (c) below it, a named window is such a one
LONG_WINDOW_S = 120.0  # (c) above it, a named window is not spread evenly, until no more than ...
SPREAD_SHARE = 0.5  # (c) ... this share of it remains; ...
SPREAD_LEAST = 0.001  # (c) ... then at least at this share of its rate
SOON_FULL_S = 10.0  # (c) a limit that is always full so soon may be for less than a minute
FILLS = 3  # (c) answers in a row whose time grows with what is used: a bucket, not a window
REFILLS = 3  # (c) times that it filled at once: a window of a second, where it ends within one
PER_SECOND_ANSWERS = 10  # (c) that agree before a limit is taken for one by the second
PER_SECOND_S = 3.0  # (c) over which they must agree

# Inferred requests in flight
CONCURRENCY_FIRST = 16  # (c) in flight to begin with
CONCURRENCY_STEP = 1.15  # (m) each step while nothing is refused: doubled in a quarter of a second
CONCURRENCY_STEP_S = 0.05  # (m) time of a step; sooner, ...
CONCURRENCY_STEP_LEAST_S = 0.01  # (c)
CONCURRENCY_STEP_ANSWERS = 3.0  # (m) ... where this many times the quickest answer is less
CONCURRENCY_STEP_RANDOM_S = 0.3  # (m) where refusals are taken for random, which may be wrong
CONCURRENCY_PROBE_ANSWERS = 150  # (m) before one more is tried, so that refusals stay rare
CONCURRENCY_PROBE_S = 3.0  # (m)
CONCURRENCY_SOON_S = 2.0  # (c) a second refusal within it cuts by ...
CONCURRENCY_CUT = 0.8  # (m) ... this factor
CONCURRENCY_COST = 30.0  # (m) times a refusal's hint, between two probes, at first; ...
CONCURRENCY_COST_MOST = 45.0  # (m) ... where the limit stayed the same; ...
CONCURRENCY_COST_BLIND = 5.0  # (m) ... and after a cut by the factor
CONCURRENCY_STARTS = 256  # (c) the last ones are known by their time
FIRST_ALONE_S = 10.0  # (c) without an answer the others follow the first request then

# Throughput of a server that queues
QUEUE_TIMEOUT = 3.0  # (c) in flight are at most as many as are answered in this part of a time-out
QUEUE_ANSWERS = 8  # (m) answers that make a round, ...
QUEUE_SHARE = 0.5  # (m) ... or this share of what is in flight; ...
QUEUE_SHARE_FIRST = 0.125  # (m) ... while it grows for the first time
QUEUE_USED = 0.85  # (c) of what may be in flight must be, else the round says nothing
QUEUE_DEEP = 2.0  # (m) times the least latency with the first few: fewer are tried, ...
QUEUE_FLAT = 0.2  # (m) ... if throughput has grown from one to them with less than this power
QUEUE_FREE = 1.25  # (c) times the least latency: so far nobody waits, and it ...
QUEUE_GROWS_FREE = 4.0  # (m) ... grows by this factor, ...
QUEUE_GROWS = 2.0  # (c) ... by this one where throughput grows ...
QUEUE_SLOPE = 0.5  # (c) ... with more than this power of what is in flight, ...
QUEUE_PROBE = 1.5  # (m) ... and else by this one, as when more is tried
QUEUE_STEP = 1.2  # (m) between two numbers in flight; so far above the best it stays
QUEUE_ABOVE = 1.1  # (c) times where latency should begin to grow, that is tried
QUEUE_ENOUGH = 0.98  # (m) of the best throughput, by which fewer in flight are as good
QUEUE_HOLD = 6  # (m) rounds before more or fewer are tried
QUEUE_KEEP = 0.8  # (m) of what was measured before, in each round
QUEUE_FADE = 0.95  # (m) of what was measured with more in flight, in each round
QUEUE_CHANGE = 0.2  # (m) as a logarithm, beyond the noise: the server is not what it was
QUEUE_WAITS = 2.0  # (m) times the least latency: answers wait for others
QUEUE_RECENT = 0.2  # (c) weight of each answer in the recent latency
QUEUE_REFUSED_S = 60.0  # (c) after a refusal: a server that refuses does not queue
QUEUE_SIZES = 1000  # (c) answers in a mean size
QUEUE_SPREAD = 0.5  # (c) the least deviation of sizes, to their mean
QUEUE_ERROR = 0.01  # (c) of any measured throughput

# The inferred rate
RATE_FIRST = 30.0  # (m) requests to begin with
RATE_DOUBLES_S = 0.2  # (m) while nothing is refused at all; sooner, ...
RATE_DOUBLES_LEAST_S = 0.04  # (c)
RATE_DOUBLES_ANSWERS = 10.0  # (m) ... where this many times the quickest answer is less
RATE_DOUBLES_RANDOM_S = 1.4  # (m) where refusals are taken for random, which may be wrong
RATE_MOST = 1e6
RATE_LEAST = 0.02  # (c)
HANDFUL = 60  # (c) requests: before that the rate does not fall below ...
HANDFUL_RATE = 5.0  # (c) ... this
ABOVE_ADVERTISED = 1.05  # (c) so that the advertised limit is what binds
USED_S = 0.25  # (c) an attempt had to wait for the rate so recently: it is used, and may grow
HOLD = 0.99  # (m) of the estimate
HOLD_REQUESTS = 130  # (m) between two probes, so that refusals stay rare
HOLD_LEAST_S = 3.0  # (m)
HOLD_MOST_S = 25.0  # (m)
RATE_COST = 20.0  # (m) times a refusal's hint: the time between two probes, at first, ...
RATE_COST_MOST = 40.0  # (m) ... and where the limit has stayed the same; ...
RATE_COST_MOST_S = 60.0  # (c) ... more than that only ...
RATE_COST_LEAST = 3.0  # (c) ... for the longest hints
SLOPE = 0.008  # (m) growth near the rate that was refused last
NEAR = 0.03  # (m) as a logarithm
CLOSES_S = 2.0  # (m) growth from far below it
GROWS = 0.5  # (m) at most, beyond it

# Counts of what was sent
TICK_S = 0.005  # (c) what is sent within it is one entry
TICKS = 2048  # (c)

# Estimate of a limit
ENOUGH = 20  # (m) requests between two refusals that make an estimate
ABOVE = 1.02  # (m) an estimate is expected to be refused that far above it
UNSURE = 0.25  # (c) of the time between two refusals: so much may be lost to rounded hints
TRUST = 0.5  # (m) in the rate at a refusal against the mean since the one before, at first
TRUST_MOST = 0.85  # (m)
MORE_TRUST = 0.15  # (m)
DISTRUST = 0.34  # (m)

# Random refusals
WAVE = 3  # (m) refusals ...
WAVE_SENT = 12  # (m) ... among so many attempts
PAIR_SENT = 20  # (m) two among so many are enough to believe it for the moment
SURE_S = 600.0  # (c) for how long a wave is remembered
IN_VAIN = 12  # (m) times in a row that a limit was lowered and refusals came all the same
LOWER = 0.5  # (m) what was lowered must have come down to this much of where it was; ...
FALLS = 3  # (m) ... or so many times, where ...
FALL = 0.8  # (m) ... each came at so much of where the one before came, and ...
FEW = 0.3  # (m) ... so few of all are refused. From so little ...
SPREAD = 2.0  # (c) ... the share is known to a factor of 1 + this / the root of the refusals, ...
FEW_MOST = 0.4  # (c) ... and it may not be more than this.
GAPS = 10  # (m) random refusals have uneven gaps: where so many in a row are even, ...
EVEN = 0.25  # (m) ... their deviation less than this share of their mean, it is a limit
RECENT_SENT = 60  # (c) attempts over which a share is taken
TIMES = 2.5  # (m) the usual share: then it is a limit
MORE = 0.1  # (m) or so much more
LEARN = 0.01  # (c) how fast a usual share follows the refusals
MOST_RANDOM = 0.9  # (c) above that nothing is let in, and it is a limit
RANDOM_S = 60.0  # (c) for how long a usual share is remembered
BARRED_S = 600.0  # (c) for how long a mistake is not made again
HEARD = 64  # (c) refusals that are remembered

# Cooldown after a hint
LONG_S = 2.0  # (c) after stops at least so long the ramp begins at ...
BELOW = 0.7  # (m) ... this share of where it was, after shorter ones nearer to it
DOUBLES_S = 0.5  # (m) in which the ramp doubles
FOLLOWED_S = 0.1  # (c) by which another process's stop must be longer
MEASURED_S = 1.0  # (c) over which starts are counted
SLOW_DOWN_S = 60.0  # (c) for how long the word `slow_down` holds
SLOW_RAMP = 1.5  # (c) at most this factor in ...
SLOW_RAMP_S = 15.0  # (c) ... so long after `slow_down` (PROTOCOL B.2)

# An endpoint that is down
OUTAGE_ROWS = 10  # (c) that fail one after the other, without any answer between them
SAME_ROWS = 20  # (c) the same, of errors that are not a sign of an outage by themselves
OUTAGE_LEAST_S = 0.5  # (c) that the failures go on, and between two probes
OUTAGE_SHARE = 0.05  # (c) of the outage's age: the interval between two probes
PROBE_AS_OTHERS_S = 2.0  # (c) from a probe that failed to the next, while others are answered
PROBE_PATIENCE_S = 30.0  # (c) for a probe that says nothing, before another one goes

# What answers need, in tokens
FIRST_OUTPUT = 256  # (c) expected before any answer
FIRST_MOST_OUTPUT = 4_096  # (c) reserved before any answer, where nothing bounds it
FIRST_UNSEEN_INPUT = (
    2_048  # (c) for an image, a file, or what is only referred to, before any answer
)
LATEST = 256  # (c) the last answers of a scope
SHARE = 0.95  # (c) of them, that an expectation covers; ...
RENEWED = 8  # (c) ... it is asked for a share of their number, one in so many, before it is renewed
