/* How the threads of a team wait for each other, and where they run. */
#ifndef ADEX_TEAM_H
#define ADEX_TEAM_H
#include <limits.h>
#include <sched.h>
#include <stdint.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "vectors.h"

/* Some microseconds: what others' last piece takes, unless their thread has lost its core. */
enum { SPINS_MAX = 20000 };

#define TAKE(counter) __atomic_fetch_add(&(counter), 1, __ATOMIC_RELAXED)

/* What a thread works at until it is done: 0, or a number that names it. Whoever clears it, has done
 * it; the others have worked for nothing. `again` is what somebody else has begun as well. */
typedef struct { int64_t work, again, unused[6]; } Held;

/* Opens when as many pieces of work are done as somebody waits for. */
typedef struct { int64_t count, asleep; } Gate;

#if defined(__linux__)
INLINE uint32_t *low_half(int64_t *value) {
    return (uint32_t *)value + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

/* Whoever yields its core instead hands it to the least of others for as long as those please;
 * whoever sleeps has it back when it is woken. */
static void sleep_at(Gate *gate, int64_t wanted) {
    __atomic_fetch_add(&gate->asleep, 1, __ATOMIC_SEQ_CST);
    for (int64_t seen; (seen = __atomic_load_n(&gate->count, __ATOMIC_SEQ_CST)) < wanted;)
        syscall(SYS_futex, low_half(&gate->count), FUTEX_WAIT_PRIVATE, (uint32_t)seen, NULL);
    __atomic_fetch_sub(&gate->asleep, 1, __ATOMIC_RELAXED);
}

static void wake_at(Gate *gate) {
    syscall(SYS_futex, low_half(&gate->count), FUTEX_WAKE_PRIVATE, INT_MAX);
}

/* Two of a team on one core would hand it to each other at every stage, while work that stands
 * behind theirs has another. */
static void stay_on(int core) {
    static __thread int staying = -1;
    if (staying == core)
        return;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(core, &only);
    sched_setaffinity(0, sizeof only, &only);
    staying = core;
}
#else
static void sleep_at(Gate *gate, int64_t wanted) {
    while (__atomic_load_n(&gate->count, __ATOMIC_ACQUIRE) < wanted)
        sched_yield();
}

static void wake_at(Gate *gate) {
    (void)gate;
}

static void stay_on(int core) {
    (void)core;
}
#endif

/* One more piece is done, of `wanted`. */
static inline void arrive(Gate *gate, int64_t wanted) {
    int64_t count = __atomic_add_fetch(&gate->count, 1, __ATOMIC_SEQ_CST);
    if (count == wanted && __atomic_load_n(&gate->asleep, __ATOMIC_SEQ_CST))
        wake_at(gate);
}

/* Whether `wanted` are done, or are after so many looks. */
static inline int opens(Gate *gate, int64_t wanted, int64_t spins) {
    while (__atomic_load_n(&gate->count, __ATOMIC_ACQUIRE) < wanted)
        if (!spins--)
            return 0;
    return 1;
}

/* Waits until `wanted` are done. */
static inline void await(Gate *gate, int64_t wanted) {
    if (!opens(gate, wanted, SPINS_MAX))
        sleep_at(gate, wanted);
}

static inline void hold(Held *held, int64_t work) {
    __atomic_store_n(&held->work, work, __ATOMIC_RELEASE);
}

/* Whether this thread is the one that may say the work is done. */
static inline int release(Held *held, int64_t work) {
    return __atomic_compare_exchange_n(&held->work, &work, 0, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/* What is held and nobody else has begun as well, which this thread does now; or 0. */
static inline int64_t take_over(Held *held) {
    int64_t work = __atomic_load_n(&held->work, __ATOMIC_ACQUIRE);
    return work && __atomic_exchange_n(&held->again, work, __ATOMIC_RELAXED) != work ? work : 0;
}
#endif
