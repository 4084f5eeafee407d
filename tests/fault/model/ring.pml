/* SPDX-License-Identifier: BSL-1.0 */

/*
 * One ring between the host and one worker: who wakes whom, who runs what, and what a death leaves behind.
 *
 * Each access to shared memory is one step, and between any two steps the other side may act. The parts bear the names
 * of the C++ functions that they mirror: those of HostChannel and WorkerChannel are in src/process/channel.cpp and
 * channel.hpp, those of WorkerPool in src/worker_pool*.cpp.
 *
 * A hang shows as an invalid end state, everything else that is wrong as a failed assertion. Each `#ifdef` inside a
 * function plants one bug, which the checker has to find: see `check` and README.md.
 */

#ifndef TASKS
#define TASKS 3 /* 2 or 3; they are known by their sequence numbers 0, 1, 2 */
#endif
#define SLOTS 2 /* kSlots: fewer than tasks, so that a slot is used twice */
#define BATCH 1 /* kCollectedTogether: fewer than can be left to collect at a death */

/* Sleep */
#define AWAKE 0
#define FOR_REQUESTS 1
#define FOR_SPACE 2

/* ResponseKind */
#define OUTCOME 0
#define SKIPPED 1

/* What becomes of a task. */
#define UNDECIDED 0
#define ANSWERED 1  /* it ran here, and its answer is delivered */
#define ELSEWHERE 2 /* not begun here, and never will be: it is cancelled, or queued again for another worker */
#define CRASHED 3   /* begun, and lost with the worker */
#define ENDED 4     /* begun, and the worker is killed to end it: it is cancelled, or its time is over */
#define OVER 5      /* one of these; to tell them apart any longer would only multiply the states */

#define NOTHING 255

/* RequestHeader and RequestSlot, which the host writes. `request` stands for all that tells the worker what to do. */
byte published;
byte consumed;
byte sleep_epoch;
bool revoked[SLOTS];
byte request[SLOTS];

/* ResponseHeader and ResponseSlot, which the worker writes. `sequence` and `payload` hold the sequence number plus one,
   so that 0 is what has never been written. */
byte begun;
byte committed;
byte sleeping;
byte sequence[SLOTS];
bool kind[SLOTS];
#ifdef BLOCKS
/* Answers are too large for the slots and lie in the worker's heap, which has room for one of them. */
#define PAYLOADS 1
#define PAYLOAD_OF(s) 0
#else
#define PAYLOADS SLOTS
#define PAYLOAD_OF(s) ((s) % SLOTS)
#endif
byte payload[PAYLOADS];

/* What the kernel knows. */
bool mortal;       /* whether the worker may die by itself: at any moment, or never */
bool discarded;    /* the template was told to kill it, or is gone itself, and sooner or later it dies of that */
byte victim;       /* the task (plus one) for the sake of which SIGKILL was sent: it may go on for a moment */
bool alive = true; /* false: its pidfd can be read */
bool doorbell;     /* the epoll descriptor of the doorbells can be read */
byte in_futex;     /* which word the worker waits for in FUTEX_WAIT: FOR_REQUESTS or FOR_SPACE; else AWAKE */

/* Only for the properties: no step of the protocol depends on these. */
byte runs[TASKS];
byte outcome[TASKS];
byte decided;

/* --------------------------------------------------------------------------------------------------------------------
 * The worker: worker_main and WorkerChannel.
 */

/* It may die instead of each of its steps, and while it sleeps. */
#define STEP(action)                                                                     \
  atomic {                                                                               \
    if                                                                                   \
    :: action                                                                            \
    :: mortal || discarded || victim != 0 -> alive = false; in_futex = AWAKE; goto dead  \
    fi                                                                                   \
  }

/* One step, as nobody looks at it before all of it is there. */
inline write_answer() {
  if
  :: !pass_over -> payload[PAYLOAD_OF(next)] = next + 1
  :: else
  fi;
  sequence[next % SLOTS] = next + 1;
  kind[next % SLOTS] = (pass_over -> SKIPPED : OUTCOME)
}

/* For fewer states: epochs are counted from the one that was rung for last. Only differences between them matter. */
inline renumber_epochs() {
  sleep_epoch = sleep_epoch - rung;
  rung = 0
}

active proctype worker() {
  byte next; /* next_ */
  byte rung; /* rung_epoch_ */
  byte epoch;
  byte seen;
  bool pass_over;
#ifdef BLOCKS
  byte released; /* released_ */
  byte holder;   /* whose answer fills the heap, plus one */
#endif

  if
  :: mortal = true
  :: mortal = false
  fi;

next_request:
  /* WorkerChannel::next. It looks once more often when it spins, which changes nothing. */
  STEP(seen = published);
  do
  :: seen != next -> break
  :: else ->
       /* sleep_for_request */
       STEP(sleeping = FOR_REQUESTS);
#ifndef WORKER_NO_RECHECK
       STEP(seen = published);
#endif
       if
       :: seen != next
       :: else ->
            /* futex_wait: to compare and to fall asleep is one step of the kernel's. */
#if defined(WORKER_NO_RECHECK) || defined(WORKER_NO_COMPARE)
            STEP(in_futex = FOR_REQUESTS);
#else
            STEP(if :: published == next -> in_futex = FOR_REQUESTS :: else fi);
#endif
            /* An idle worker may well sleep for ever. If it leaves a request undone, it is the host that hangs. */
end_idle:
            STEP(in_futex == AWAKE)
       fi;
       STEP(sleeping = AWAKE);
       STEP(seen = published)
  od;
  seen = 0;

  /* take_up */
#ifdef REVOKED_BEFORE_BEGUN
  STEP(pass_over = revoked[next % SLOTS]);
  STEP(begun = next + 1);
#else
  STEP(begun = next + 1);
  STEP(pass_over = revoked[next % SLOTS]);
#endif
  if
  :: pass_over -> goto finish
  :: else
  fi;

  /* run */
  STEP(
    assert(request[next % SLOTS] == next);
    assert(runs[next] == 0);
    assert(outcome[next] != ELSEWHERE && outcome[next] != OVER);
    runs[next]++);

#ifdef BLOCKS
  /* allocate_answer */
  do
  :: STEP(
       /* release_consumed */
       released = consumed;
       if
       :: holder <= released -> holder = 0
       :: else
       fi);
     if
     :: holder == 0 -> break
     :: else ->
          STEP(sleeping = FOR_SPACE);
#ifndef WORKER_NO_SPACE_RECHECK
          STEP(seen = consumed);
#else
          seen = released;
#endif
          if
          :: seen != released
          :: else ->
#ifdef WORKER_NO_SPACE_RECHECK
               STEP(in_futex = FOR_SPACE);
#else
               STEP(if :: consumed == released -> in_futex = FOR_SPACE :: else fi);
#endif
               STEP(in_futex == AWAKE)
          fi;
          seen = 0;
          STEP(sleeping = AWAKE)
     fi
  od;
  holder = next + 1;
#endif

finish:
#ifdef ANSWER_AFTER_COMMIT
  STEP(committed = next + 1);
  STEP(write_answer());
  STEP(epoch = sleep_epoch);
#else
  STEP(write_answer());
#ifdef EPOCH_BEFORE_COMMIT
  STEP(epoch = sleep_epoch);
  STEP(committed = next + 1);
#else
  STEP(committed = next + 1);
  STEP(epoch = sleep_epoch);
#endif
#endif
  if
  :: epoch != rung -> STEP(doorbell = true; rung = epoch; renumber_epochs())
  :: else
  fi;
  atomic { epoch = 0; pass_over = false; next++ };
  goto next_request;

dead:
  /* What it knew is gone with it. */
  atomic { next = 0; rung = 0; epoch = 0; seen = 0; pass_over = false }
}

/* --------------------------------------------------------------------------------------------------------------------
 * The host: WorkerPool and HostChannel. One mutex guards all that its threads do, so they are one process here, and
 * what one thread does with the mutex is one choice in its loop.
 *
 * It always waits for doorbells when it has nothing to do, as if tasks of other workers were in flight, also when this
 * ring is empty: that is the harder case.
 */

/* Dispatcher::load */
#define LOAD (reserved - collected)

/* A task gets one outcome, and the right one. */
inline decide(which, what) {
  assert(outcome[which] == UNDECIDED);
  assert(what != ANSWERED || runs[which] == 1);
  assert(what != ELSEWHERE || runs[which] == 0);
  assert(what != ENDED || begun > which && victim == which + 1);
  /* What was committed before a death is not lost, and a kill ends the task that is meant and no other. */
  assert(what != CRASHED || begun > which && (mortal || discarded) && (committed <= which || discarded));
  outcome[which] = what;
  decided++
}

/* futex_wake, if the worker was seen to sleep for this. */
inline wake(word) {
  atomic {
    if
    :: look == word && in_futex == word -> in_futex = AWAKE
    :: else
    fi;
    look = 0
  }
}

/* WorkerPool::publish_filled, HostChannel::publish */
inline publish_filled() {
  atomic {
    unpublished = false;
    end = shown;
    do
    :: end != reserved && filled[end] -> end++
    :: else -> break
    od
  };
  if
  :: end == shown
  :: else ->
       /* A host that waits has not armed a ring that was empty then. The worker must see that before the request. */
#if !defined(PUBLISHED_UNARMED) && !defined(ARM_AFTER_PUBLISH)
       if
       :: waiting -> sleep_epoch++ /* HostChannel::arm */
       :: else
       fi;
#endif
#ifdef SLEEPING_BEFORE_PUBLISHED
       look = sleeping;
       atomic { shown = end; published = end };
#else
       atomic { shown = end; published = end };
       look = sleeping;
#endif
       wake(FOR_REQUESTS)
#ifdef ARM_AFTER_PUBLISH
       ;
       if
       :: waiting -> sleep_epoch++
       :: else
       fi
#endif
  fi;
  end = 0
}

/* For fewer states: what is over leaves no trace. Whoever looks at it nevertheless fails an assertion. */
inline forget(which) {
  request[which % SLOTS] = NOTHING;
  revoked[which % SLOTS] = false;
  sequence[which % SLOTS] = 0;
  kind[which % SLOTS] = OUTCOME;
#ifndef BLOCKS
  payload[which % SLOTS] = 0;
#endif
  filled[which] = false;
  tried[which] = false;
  answered[which] = false;
  runs[which] = 0;
  outcome[which] = OVER
}

/* WorkerPool::consume, HostChannel::consume */
inline consume() {
#ifdef SLEEPING_BEFORE_CONSUMED
  look = sleeping;
#endif
  atomic {
    do
    :: freed != collected && answered[freed] -> forget(freed); freed++
    :: else -> break
    od;
    consumed = freed
  };
#ifndef SLEEPING_BEFORE_CONSUMED
  look = sleeping;
#endif
  wake(FOR_SPACE)
}

/* Worker::doomed: the task was quicker than the kill, and the verdict on it is void. */
#define RETRACT doomed = doomed && victim != collected + 1

/* WorkerPool::take_answer, HostChannel::response. Where an assertion fails, the host would see a ProtocolViolation. */
inline take_answer() {
  atomic {
    assert(sequence[collected % SLOTS] == collected + 1);
    if
    :: kind[collected % SLOTS] == SKIPPED ->
         assert(!node[collected] || tried[collected]);
         answered[collected] = true;
         if
         :: node[collected] ->
              node[collected] = false;
#ifndef SKIPPED_STAYS_DOOMED
              RETRACT;
#endif
              decide(collected, ELSEWHERE)
         :: else
         fi;
         found = true;
         collected++
    :: kind[collected % SLOTS] == OUTCOME && !node[collected] ->
         /* Nobody waits for it any more, since its caller was told that it is ended. This is a ProtocolViolation, too,
            but the worker is being killed anyway. The host looks again and again until it is dead; as that changes
            nothing, here it does not. */
         broken = true;
         end = collected;
         assert(victim == collected + 1)
    :: kind[collected % SLOTS] == OUTCOME && node[collected] ->
         node[collected] = false;
         RETRACT;
#ifdef BLOCKS
         assert(ready == 0);
         ready = collected + 1;
#ifdef CONSUME_BEFORE_DECODE
         answered[collected] = true;
#endif
#else
         assert(payload[PAYLOAD_OF(collected)] == collected + 1);
         answered[collected] = true;
         decide(collected, ANSWERED);
#endif
         found = true;
         collected++
    fi
  }
}

/* WorkerPool::collect_from. Sets `found` if it got anywhere. */
inline collect_from() {
  atomic {
    end = committed;
    assert(collected <= end && end <= shown); /* HostChannel::committed */
    if
    :: end - collected > BATCH -> end = collected + BATCH
    :: else
    fi;
    found = false
  };
  if
  :: end == collected
  :: else ->
       do
       :: collected != end -> take_answer()
       :: else -> break
       od;
       consume()
  fi;
  end = 0
}

/* WorkerPool::wait_for_answers, HostChannel::arm */
inline wait_for_answers() {
  if
  :: LOAD == 0 || broken -> waiting = true
  :: else ->
#ifdef COMMITTED_BEFORE_EPOCH
       end = committed;
       sleep_epoch++;
#else
       sleep_epoch++;
       end = committed;
#endif
       atomic {
         if
#ifdef HOST_NEVER_SLEEPS
         :: true -> drain_posted = true
#else
#ifndef HOST_NO_RECHECK
         :: end != collected -> drain_posted = true
#endif
         :: else -> waiting = true
#endif
         fi;
         end = 0
       }
  fi
}

/* WorkerPool::drain. To deliver an answer it gives the mutex back: what other threads do meanwhile is what the host's
   loop may do between one drain and the next. Rounds that find nothing (kFruitlessRounds) change nothing. */
inline drain() {
  if
  :: LOAD > 0 && !broken -> collect_from() /* collect */
  :: else
  fi;
#ifndef DRAIN_KEEPS_UNPUBLISHED
  if
  :: unpublished -> publish_filled()
  :: else
  fi;
#endif
  if
  :: atomic { found -> found = false; drain_posted = true }
  :: !found && drain_posted
  :: !found && !drain_posted -> wait_for_answers()
  fi
}

/* WorkerPool::place, once the arguments are encoded; HostChannel::fill. A slot without a task goes its way, too. */
inline fill(which) {
#ifdef KILLED_GETS_TASKS
  node[which] = true;
#else
  node[which] = (victim == 0);
#endif
  request[which % SLOTS] = which;
  revoked[which % SLOTS] = !node[which];
  filled[which] = true;
  unpublished = true;
  if
  :: !node[which] -> decide(which, ELSEWHERE)
  :: else
  fi
}

/* WorkerPool::publish, and the end of execute. */
inline publish() {
  /* What a busy worker gets is shown with the next, at the latest by the drain. */
  if
  :: !drain_posted || LOAD == 1 -> publish_filled()
  :: else
  fi;
  if
  :: !waiting -> drain_posted = true
  :: else
  fi
}

/* HostChannel::take_back. `look` becomes `begun`. */
inline revoke(which) {
#ifdef BEGUN_BEFORE_REVOKED
  look = begun;
  revoked[which % SLOTS] = true
#else
  revoked[which % SLOTS] = true;
  look = begun
#endif
}

/* WorkerPool::take_back, and what those do who call it: the task is cancelled or queued again. Those that take back
   several tasks (take_back_behind, cancel_pending) are several choices here. */
inline take_back(which) {
  tried[which] = true;
  revoke(which);
#ifdef TRUST_REVOKED
  look = 0;
#endif
  atomic {
    if
    :: which < shown && look > which
    :: else ->
         node[which] = false;
         decide(which, ELSEWHERE);
         drain_posted = true
    fi;
    look = 0
  }
}

/* WorkerPool::finish, for an answer in the heap: it is decoded where the worker wrote it, and only then consumed. */
inline finish_answer() {
  atomic {
    assert(payload[0] == ready);
    answered[ready - 1] = true;
    decide(ready - 1, ANSWERED);
    ready = 0
  };
  consume()
}

/* WorkerPool::collect_all */
inline collect_all() {
  do
  :: collect_from();
#ifdef FINAL_DRAIN_ONE_BATCH
     break
#else
     if
     :: !found -> break
     :: else
     fi
#endif
  od;
  found = false
}

/* WorkerPool::bury, judge */
inline bury() {
#ifndef NO_FINAL_DRAIN
  collect_all();
#endif
  atomic { buried = true; which = collected };
  do
  :: which == reserved -> break
  :: which != reserved && !node[which] -> which++
  :: which != reserved && node[which] ->
       /* Taken back, and not only looked at: a worker that was discarded, or whose template is gone, may live on for a
          moment, and would take up what another worker is about to run. */
#ifdef JUDGE_WITHOUT_REVOKING
       look = begun;
#else
       revoke(which);
#endif
       atomic {
         node[which] = false;
         if
         :: doomed && victim == which + 1 ->
              assert(discarded || committed <= which);
              doomed = false;
              decide(which, ENDED)
         :: else ->
              if
              :: which < shown && look > which -> decide(which, CRASHED)
              :: else -> decide(which, ELSEWHERE)
              fi
         fi;
         look = 0;
         which++
       }
  od;
  which = 0
}

#ifdef NO_ROOM_CHECK
#define HAS_ROOM true
#else
#define HAS_ROOM (reserved - freed < SLOTS) /* HostChannel::free_slots */
#endif

#ifdef KILLED_GETS_TASKS
#define IS_CHOSEN true
#else
#define IS_CHOSEN (victim == 0)
#endif

#define CAN_PLACE (!quiet && !buried && reserved < TASKS && HAS_ROOM && IS_CHOSEN)

/* In the ring, as far as the host knows. */
#define IN_RING(t) (collected <= (t) && (t) < reserved && node[t])

#define CAN_TAKE_BACK(t) (!quiet && !buried && IN_RING(t) && !tried[t])

/* The worker is killed for a task that could not be taken back, when nothing lies behind it any more. */
#define NO_TASK_AT(t) ((t) >= TASKS || !node[(t) % TASKS])
#define CAN_KILL_FOR(t) \
  (!quiet && !buried && victim == 0 && IN_RING(t) && tried[t] && NO_TASK_AT((t) + 1) && NO_TASK_AT((t) + 2))

active proctype host() {
  /* HostChannel: reserved_, published_, consumed_ */
  byte reserved;
  byte shown;
  byte freed;
  /* Entry; `tried` is its `revoked` */
  bool node[TASKS];
  bool filled[TASKS];
  bool tried[TASKS];
  bool answered[TASKS];
  /* Worker, WorkerPool */
  byte collected;
  bool unpublished;
  bool buried;
  bool drain_posted;
  bool waiting;
  bool broken;   /* the next answer is one that nobody waits for */
  bool doomed;   /* it is decided how the victim ends, and its caller is still to be told */
  byte ready;    /* the task (plus one) whose answer is still to be decoded */
  byte encoding; /* the task (plus one) whose arguments are being encoded */
  /* Nobody submits, cancels or kills any more. Otherwise a hang could hide behind what they still might do. */
  bool quiet;
  byte look;
  byte end;
  byte which;
  bool found;

  do
  /* execute: some arguments are encoded without the mutex, and what comes later may overtake them. */
  :: atomic { CAN_PLACE && encoding == 0 -> encoding = reserved + 1; reserved++ }
  :: atomic {
       if
       :: CAN_PLACE && encoding != 0 -> which = reserved; reserved++
       :: encoding != 0 && !buried -> which = encoding - 1; encoding = 0
       fi;
       fill(which);
       which = 0
     };
     publish()
  :: atomic { encoding != 0 && buried -> decide(encoding - 1, ELSEWHERE); encoding = 0 }

  /* cancel, limit_passed, take_back_behind, cancel_pending */
  :: atomic {
       if
       :: CAN_TAKE_BACK(0) -> which = 0
       :: CAN_TAKE_BACK(1) -> which = 1
       :: CAN_TAKE_BACK(TASKS - 1) -> which = TASKS - 1
       fi
     };
     take_back(which);
     which = 0

  /* limit_passed, end_run */
  :: atomic {
       if
       :: CAN_KILL_FOR(0) -> which = 0
       :: CAN_KILL_FOR(1) -> which = 1
       :: CAN_KILL_FOR(TASKS - 1) -> which = TASKS - 1
       fi;
       victim = which + 1;
       doomed = true;
       which = 0
     }
  /* tell_doomed: where dying takes its time, the caller is told before. Of its collect_all this is the last look, which
     finds nothing more; those before are as good as drains. */
  :: atomic {
       doomed && !buried && committed == collected ->
         doomed = false;
         node[victim - 1] = false;
         decide(victim - 1, ENDED)
     }

  :: !quiet -> quiet = true

  /* The handlers in schedule_drain and wait_for_answers; clear_doorbells. */
#ifdef CLEAR_AFTER_DRAIN
  :: atomic { drain_posted && !buried -> drain_posted = false };
     drain()
  :: atomic { waiting && doorbell && !buried -> waiting = false };
     drain();
     doorbell = false
#else
  :: atomic {
       if
       :: drain_posted && !buried -> drain_posted = false
       :: waiting && doorbell && !buried -> waiting = false; doorbell = false
       fi
     };
     drain()
#endif

#ifdef BLOCKS
  :: ready != 0 -> finish_answer()
#endif

#ifndef NO_DEATH_EVENT
  :: !alive && !buried -> bury() /* worker_died */
#endif

  /* read_template, template_gone: the worker cannot be watched. It was just forked, and has one task at most. */
  :: atomic { !quiet && !buried && alive && collected == 0 && reserved <= 1 -> discarded = true };
     bury()

  :: quiet && decided == reserved -> break
  od
}
