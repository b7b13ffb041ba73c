"""The tuned constants of the limits, in one table: what each does, and where it comes from.

(m) measured: the value came out best, or the best of those tried, against the hidden limits of
    tests/pacing (random servers in virtual time) and of `make bench-pacing` (over a socket).
(c) chosen: plausible, and nothing showed that another value would do better.
Rates are a second, unless a name says otherwise.
"""

# Spacing of starts
LATE_S = 0.05  # (c) late timers (loop clocks tick in milliseconds) are made up for, up to this
EARLY_S = 0.0005  # (c) shorter waits are skipped: the loop would spin

# The user's limits a minute
MINUTE_S = 60.0
REQUESTS_MINUTE_S = 60.3  # (m) so that a jittering network cannot push two minutes into one
TOKENS_LATE_S = 2.0  # (c) the same for the time that a large need waits for room in the minute
ROUNDED_S = 1e-6  # rounding errors in quotients and sums of times
MERGED_S = 0.01  # (c) starts within this time are one entry
ALLOWANCE_FAST = 1.03  # (m) a worker's pace, times its part; the allowance is the real limit

# Advertised limits
BELOW_ADVERTISED = 0.995  # (m) of the limit, if the server does not say what remains
# If it does, the rate is from a little below the limit, when nothing remains, to a little above it,
# when everything remains.
EMPTY_FACTOR = 0.99  # (m)
FULL_FACTOR = 0.05  # (m) added to it
FULL_LEAST = 20.0  # (c) requests or tokens that a full bucket must hold for this, ...
FULL_SHARE = 0.005  # (c) ... and at least this share of the limit
MOST_HEADERS = 8  # (c) headers of one scope that are followed
STRIKES = 2  # (c) refusals in spite of the advertised limit that change nothing, ...
STRIKE_REQUESTS = 60  # (c) ... and one more for every so many requests; ...
STRIKE_CUT = 0.97  # (m) ... each further one cuts the rate to this share
ROOM = 0.05  # (c) of a full bucket, and as much as ...
ROOM_REQUESTS = 2.0  # (c) ... so many requests like it need: a refused one has not met this limit
BELOW_SHORT = 0.95  # (m) of a limit with a short window: one refusal costs the whole window
SHORT_WINDOW_S = 20.0  # (c) a window below this is short
LONG_WINDOW_S = 120.0  # (c) a named window above this is not spread evenly until at most ...
SPREAD_SHARE = 0.5  # (c) ... this share of the limit remains; ...
SPREAD_LEAST = 0.001  # (c) ... then with at least this share of its even rate
SOON_FULL_S = 10.0  # (c) a limit that is always full so soon may have a window below a minute
FILLS = 3  # (c) answers in a row whose time until full grows with use: a bucket, not a window
REFILLS = 3  # (c) times that it filled at once, each within a second: a window of a second
PER_SECOND_ANSWERS = 10  # (c) must agree that the window is a second, ...
PER_SECOND_S = 3.0  # (c) ... over at least this time

# Inferred requests in flight
CONCURRENCY_FIRST = 16  # (c) in flight to begin with
CONCURRENCY_STEP = 1.15  # (m) each step while nothing is refused: doubled in a quarter of a second
CONCURRENCY_STEP_S = 0.05  # (m) time of a step; shorter ...
CONCURRENCY_STEP_LEAST_S = 0.01  # (c) the shortest step
CONCURRENCY_STEP_ANSWERS = 3.0  # (m) ... where this many times the quickest answer is less
CONCURRENCY_STEP_RANDOM_S = 0.3  # (m) if refusals seem random, which may be wrong
CONCURRENCY_PROBE_ANSWERS = 150  # (m) answers before one more is tried, so that refusals stay rare
CONCURRENCY_PROBE_S = 3.0  # (m) least time before one more is tried
CONCURRENCY_SOON_S = 2.0  # (c) a second refusal within it cuts by ...
CONCURRENCY_CUT = 0.8  # (m) ... this factor
CONCURRENCY_COST = 30.0  # (m) times a refusal's hint is the time between two probes, at first; ...
CONCURRENCY_COST_MOST = 45.0  # (m) ... at most, if the limit stays the same; ...
CONCURRENCY_COST_BLIND = 5.0  # (m) ... and after a cut by the factor
CONCURRENCY_DOUBTED = 16  # (c) refusals that may be part of a wave, before it is one, and the ...
CONCURRENCY_DOUBT_S = 0.05  # (c) most time for which they keep their places; ...
CONCURRENCY_STARTS = 256  # (c) so many of the last starts are remembered with their times
FIRST_ALONE_S = 10.0  # (c) without an answer, the others follow the first request after this

# Throughput of a server that queues
QUEUE_TIMEOUT = 3.0  # (c) at most as many in flight as are answered in a time-out divided by this
QUEUE_ANSWERS = 8  # (m) answers that make a round, ...
QUEUE_SHARE = 0.5  # (m) ... or this share of what is in flight; ...
QUEUE_SHARE_FIRST = 0.125  # (m) ... during the first growth
QUEUE_USED = 0.85  # (c) of what may be in flight must be in use, else the round says nothing
QUEUE_DEEP = 2.0  # (m) times the least latency, with the first few: fewer are tried, ...
QUEUE_FLAT = 0.2  # (m) ... if throughput grew from one to these with less than this power
QUEUE_FREE = 1.25  # (c) times the least latency: below it nothing waits, and what is in flight ...
QUEUE_GROWS_FREE = 4.0  # (m) ... grows by this factor, ...
QUEUE_GROWS = 2.0  # (c) ... by this one if throughput grows ...
QUEUE_SLOPE = 0.5  # (c) ... with more than this power of what is in flight, ...
QUEUE_PROBE = 1.5  # (m) ... and else by this one, as in a probe
QUEUE_STEP = 1.2  # (m) factor between two numbers in flight; it stays this far above the best
QUEUE_FALLS = 2.0  # (m) it falls at most by this factor at a time: few answers are a rough measure
QUEUE_ABOVE = 1.1  # (c) a number this far above where latency should begin to grow is tried
QUEUE_ENOUGH = 0.98  # (m) fewer in flight are as good with this share of the best throughput
QUEUE_HOLD = 6  # (m) rounds before more or fewer are tried
QUEUE_KEEP = 0.8  # (m) weight that older measurements keep, in each round
QUEUE_FADE = 0.95  # (m) weight of those with more in flight
QUEUE_CHANGE = 0.2  # (m) as a logarithm, beyond the noise: the server has changed
QUEUE_WAITS = 2.0  # (m) times the least latency: answers wait for others
QUEUE_RECENT = 0.2  # (c) weight of each answer in the recent latency
QUEUE_REFUSED_S = 60.0  # (c) after a refusal: a server that refuses does not queue
QUEUE_SIZES = 1000  # (c) answers in a mean size
QUEUE_SPREAD = 0.5  # (c) the least deviation of sizes, relative to their mean
QUEUE_ERROR = 0.01  # (c) relative error of any measured throughput

# The inferred rate
RATE_FIRST = 30.0  # (m) requests to begin with
RATE_DOUBLES_S = 0.2  # (m) while nothing is refused; shorter ...
RATE_DOUBLES_LEAST_S = 0.04  # (c) the shortest
RATE_DOUBLES_ANSWERS = 10.0  # (m) ... where this many times the quickest answer is less
RATE_DOUBLES_RANDOM_S = 1.4  # (m) if refusals seem random, which may be wrong
RATE_MOST = 1e6
RATE_LEAST = 0.02  # (c)
HANDFUL = 60  # (c) requests; before so many are sent the rate does not fall below ...
HANDFUL_RATE = 5.0  # (c) ... this
ABOVE_ADVERTISED = 1.05  # (c) so that the advertised limit applies, not this one
USED_S = 0.25  # (c) the rate may grow if an attempt had to wait for it within this time
HOLD = 0.99  # (m) of the estimate, on the plateau
HOLD_REQUESTS = 130  # (m) requests between two probes, so that refusals stay rare
HOLD_LEAST_S = 3.0  # (m) least time between two probes
HOLD_MOST_S = 25.0  # (m) most time, as far as requests decide it
RATE_COST = 20.0  # (m) times a refusal's hint is the time between two probes, at first, ...
RATE_COST_MOST = 40.0  # (m) ... and at most this, if the limit stays the same; ...
RATE_COST_MOST_S = 60.0  # (c) ... more than that only ...
RATE_COST_LEAST = 3.0  # (c) ... for the longest hints
SLOPE = 0.008  # (m) growth near the rate that was refused last
NEAR = 0.03  # (m) what counts as near, as a logarithm
CLOSES_S = 2.0  # (m) time constant of growth from far below it
GROWS = 0.5  # (m) most extra growth above it

# Counts of what was sent
TICK_S = 0.005  # (c) requests sent within this time are one entry
TICKS = 2048  # (c) entries that are kept

# Estimate of a limit
ENOUGH = 20  # (m) requests between two refusals that are enough for an estimate
ABOVE = 1.02  # (m) refusals are expected this far above an estimate
UNSURE = 0.25  # (c) of the time between two refusals may be lost to rounded hints
TRUST = 0.5  # (m) first weight of the rate at a refusal, against the mean since the last one
TRUST_MOST = 0.85  # (m) the highest weight
MORE_TRUST = 0.15  # (m) added if it was right
DISTRUST = 0.34  # (m) taken off if it was wrong

# Random refusals
SMALL_SHARE = 0.05  # (c) refused of what is sent: no sign of a limit
LARGE_SHARE = 0.23  # (m) a wave: tested against the former; ...
EVIDENCE = 7.2  # (m) ... as the logarithm of the likelihood ratio: 5 refusals in a row
SURE_S = 600.0  # (c) for how long a wave is remembered
SURE_IN_FLIGHT_S = 2.0  # (c) the same, where refusals show at once how many in flight fit
IN_VAIN = 12  # (m) times in a row that refusals came although the limit was lowered
LOWER = 0.5  # (m) the limit must have come down to this share of where it was; ...
FALLS = 3  # (m) ... or have fallen so many times, ...
FALL = 0.8  # (m) ... each time to this share or less, while ...
FEW = 0.3  # (m) ... at most this share of all is refused. From so few ...
SPREAD = 2.0  # (c) ... the share is known to a factor of 1 + this / sqrt(refusals), ...
FEW_MOST = 0.4  # (c) ... and is at most this.
GAPS = 10  # (m) random refusals have uneven gaps. If so many gaps in a row are even, ...
EVEN = 0.25  # (m) ... with a deviation below this share of their mean, it is a limit
RECENT_SENT = 60  # (c) attempts over which the share is measured
TIMES = 2.5  # (m) a share this many times the usual one is a limit, ...
MORE = 0.1  # (m) ... or this much above it, ...
DEVIATIONS = 5.0  # (m) ... and beyond so many standard deviations
LEARN = 0.01  # (c) how fast a usual share follows the refusals
MOST_RANDOM = 0.9  # (c) a share above this is a limit: hardly anything is accepted
RANDOM_S = 60.0  # (c) for how long a usual share is remembered
BARRED_S = 600.0  # (c) for how long refusals are not taken for random again
HEARD = 64  # (c) refusals that are remembered

# Cooldown after a hint
LONG_S = 2.0  # (c) after stops of this length or more, the ramp begins at ...
BELOW = 0.7  # (m) ... this share of the old rate; after shorter ones, closer to it
DOUBLES_S = 0.5  # (m) the time in which the ramp doubles
FOLLOWED_S = 0.1  # (c) another process's stop is followed if it is longer by this
MEASURED_S = 1.0  # (c) the time over which starts are counted
SLOW_DOWN_S = 60.0  # (c) for how long `slow_down` has effect
SLOW_RAMP = 1.5  # (c) the ramp grows at most by this factor in ...
SLOW_RAMP_S = 15.0  # (c) ... this time after `slow_down` (PROTOCOL B.2)

# An endpoint that is down
OUTAGE_ROWS = 10  # (c) rows that fail in a row, without any answer between them
SAME_ROWS = 20  # (c) the same, of errors that are not a sign of an outage by themselves
OWN_ROWS = 5  # (c) rows refused for what they ask, with no such failure between them: it is up
OUTAGE_LEAST_S = 0.5  # (c) that the failures go on, and between two probes
OUTAGE_SHARE = 0.05  # (c) of the outage's age: the interval between two probes
PROBE_AS_OTHERS_S = 2.0  # (c) from a probe that failed to the next, while others are answered
PROBE_PATIENCE_S = 30.0  # (c) for a probe that says nothing, before another one goes
ACCEPTED_S = 30.0  # (c) in flight for so long, or ...
ACCEPTED_SHARE = 0.5  # (c) ... this share of the patience: it was not refused

# What answers need, in tokens
FIRST_OUTPUT = 256  # (c) expected before any answer
FIRST_MOST_OUTPUT = 4_096  # (c) reserved before any answer, if nothing bounds it
FIRST_UNSEEN_INPUT = (
    2_048  # (c) for an image, a file, or what is only referred to, before any answer
)
LATEST = 256  # (c) the last answers of a scope
SHARE = 0.95  # (c) an expectation covers this share of them; ...
RENEWED = 8  # (c) ... it is calculated again after len / this more have come
