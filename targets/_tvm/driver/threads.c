/* Threads that share the loops of a library's kernels; `threads.so` of an artifact.

     void qcompile_use_threads(int threads)     how many take part from now on; 1, nobody but the caller, at first
                                                what was seen of lost processors is forgotten
     int  qcompile_launch(part, data, number)   TVM's TVMBackendParallelLaunch: run all parts of one loop
     void qcompile_forget_threads(void)         in a forked child, which has none of its parent's threads

   Every loop is cut into one part a thread.  A thread begins with its own part and then takes those that nobody has
   begun, so nobody waits for a thread that is not running.  It waits in a spin of its own for a while, without telling
   the operating system, which would let whoever else wants the processor have it for milliseconds, and sleeps then.
   Where threads lose their processors in the middle of their parts again and again, the caller computes alone for a
   while: with fewer free processors than threads, a team is slower than one thread.  Who calls while another caller's loop runs computes alone
   too.

   It needs no header and no library of the target's but the semaphores and threads of Linux's C libraries. */

typedef unsigned int u32;
typedef struct { void *barrier; int parts; } Group;
typedef int (*Part)(int part, Group *group, void *data);

typedef struct { long seconds, nanoseconds; } Time;
typedef union { long long aligned; char bytes[64]; } Semaphore;
int sem_init(Semaphore *, int shared, u32 value);
int sem_wait(Semaphore *);
int sem_post(Semaphore *);
int pthread_create(unsigned long *thread, const void *attributes, void *(*run)(void *), void *argument);
int pthread_detach(unsigned long thread);
int clock_gettime(int clock, Time *);

enum {
    MOST = 256,
    WORKER_SPINS = 20000, /* about a millisecond: from one kernel to the next, and from one inference to the next */
    CALLER_SPINS = 8000,  /* the others have begun, so they end soon, or are not running */
    STALL = 500000,       /* nanoseconds a caller waits longer than it has worked: somebody else has the processor */
    PENALTY = 16,         /* how many times as long it computes alone, where that happens twice in twice that time */
};

#define LINE __attribute__((aligned(64)))
#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define STORE(x, value) __atomic_store_n(&(x), value, __ATOMIC_SEQ_CST)
#define EXCHANGE(x, value) __atomic_exchange_n(&(x), value, __ATOMIC_SEQ_CST)

/* One thread's place to sleep.  Whoever sets `asleep` back to 0 owes it one post, or has withdrawn it himself. */
typedef struct { LINE int asleep; Semaphore semaphore; } Bed;

static struct {
    LINE u32 loops;        /* launched so far */
    LINE int finished;     /* parts of the present loop */
    LINE int busy, failed; /* whether a loop is running; whether a part of it failed */
    LINE Part part;
    void *data;
    Group group;
    long long alone_until, suspect_until; /* of `now` */
    LINE int others, started; /* threads beside the caller: wanted, and there */
    struct { LINE int free; } parts[MOST];
    Bed beds[MOST];
} team;

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

static long long now(void)
{
    Time time;
    clock_gettime(1, &time); /* CLOCK_MONOTONIC */
    return time.seconds * 1000000000ll + time.nanoseconds;
}

static void wake(Bed *bed)
{
    if (LOAD(bed->asleep) && EXCHANGE(bed->asleep, 0)) sem_post(&bed->semaphore);
}

/* Wait until a word is, or is no longer, the given one. */
static void await(Bed *bed, u32 *word, u32 value, int equal, int spins)
{
    while ((LOAD(*word) == value) != equal) {
        if (spins-- > 0) {
            relax();
            continue;
        }
        STORE(bed->asleep, 1);
        if ((LOAD(*word) == value) == equal && EXCHANGE(bed->asleep, 0)) return;
        while (sem_wait(&bed->semaphore)) { /* interrupted by a signal */
        }
    }
}

/* Run every part that nobody has begun, the own one first.  A part belongs to the loop that runs now whoever takes it:
   the loop does not end before all are finished. */
static void work(int own)
{
    int threads = LOAD(team.group.parts);
    for (int i = 0; i < threads; i++) {
        int part = own + i < threads ? own + i : own + i - threads;
        if (!LOAD(team.parts[part].free) || !EXCHANGE(team.parts[part].free, 0)) continue;
        int last = LOAD(team.group.parts);
        if (team.part(part, &team.group, team.data)) STORE(team.failed, 1);
        if (__atomic_add_fetch(&team.finished, 1, __ATOMIC_SEQ_CST) == last) wake(&team.beds[0]);
    }
}

static void *member(void *number)
{
    int own = (int)(long)number;
    for (u32 seen = 0;;) {
        await(&team.beds[own], &team.loops, seen, 0, WORKER_SPINS);
        seen = LOAD(team.loops);
        if (own < LOAD(team.group.parts)) work(own);
    }
    return 0;
}

/* Have so many threads, or as many as the system gives; how many there are. */
static int gather(int threads)
{
    unsigned long thread;
    if (!team.started) sem_init(&team.beds[0].semaphore, 0, 0);
    for (; team.started < threads - 1; team.started++) {
        int own = team.started + 1;
        sem_init(&team.beds[own].semaphore, 0, 0);
        if (pthread_create(&thread, 0, member, (void *)(long)own)) break;
        pthread_detach(thread);
    }
    return team.started + 1 < threads ? team.started + 1 : threads;
}

void qcompile_use_threads(int threads)
{
    STORE(team.others, threads < 1 ? 0 : threads > MOST ? MOST - 1 : threads - 1);
    team.alone_until = team.suspect_until = 0;
}

void qcompile_forget_threads(void)
{
    team.started = 0;
    for (int i = 0; i < MOST; i++) team.beds[i].asleep = 0;
    STORE(team.busy, 0);
}

int qcompile_launch(Part part, void *data, int number)
{
    int threads = LOAD(team.others) + 1, failed;
    Group alone = {0, 1};
    (void)number; /* 0, always: as many as there are threads */
    if (threads == 1 || LOAD(team.busy) || EXCHANGE(team.busy, 1)) return part(0, &alone, data);
    long long begun = now();
    if (begun < team.alone_until) {
        failed = part(0, &alone, data);
        STORE(team.busy, 0);
        return failed;
    }
    threads = gather(threads);
    team.part = part;
    team.data = data;
    STORE(team.group.parts, threads);
    STORE(team.failed, 0);
    STORE(team.finished, 0);
    for (int i = 0; i < threads; i++) STORE(team.parts[i].free, 1);
    __atomic_add_fetch(&team.loops, 1, __ATOMIC_SEQ_CST);
    for (int i = 1; i < threads; i++) wake(&team.beds[i]);
    work(0);
    if (LOAD(team.finished) != threads) {
        long long worked = now();
        await(&team.beds[0], (u32 *)&team.finished, (u32)threads, 1, CALLER_SPINS);
        long long ended = now(), stalled = (ended - worked) - (worked - begun);
        if (stalled > STALL) {
            if (ended < team.suspect_until) team.alone_until = ended + PENALTY * stalled;
            team.suspect_until = ended + 2 * PENALTY * stalled;
        }
    }
    failed = LOAD(team.failed) ? -1 : 0;
    STORE(team.busy, 0);
    return failed;
}
