// Package rotation gives secrets new versions, on a schedule or when asked, in two phases: a new
// value is stored under a label of its own, put into force in the system that it is for, tried
// there, and only then made current.
//
//	r, err := rotation.New(rotation.Options{Rotations: list, Upstream: upstream, Run: run})
//	if err != nil { … }
//	err = r.Run(ctx)                    // the schedule, until ctx ends
//	result, err := r.Rotate(ctx, name)  // or one rotation, now
//
// # The steps
//
//  1. make: the next value, from the current one;
//  2. put: it becomes a version under the label [Rotation.PendingStage];
//  3. set: a command puts it into force in the target system;
//  4. test: a command tries it there;
//  5. finish: ACSCurrent moves to the version, and the pending label goes.
//
// Without set and test the first two are all: the version is put as the current one.
//
// Whoever rotates keeps nothing. What there is to do shows in the versions and labels of the
// upstream, which are looked at before each attempt: a pending version is taken up and not made
// again, a pending label on the current version only has to go. So a rotation can be cut off at any
// moment and goes on from there, by whoever looks next, and a step whose answer was lost is
// done when it shows. Set may run again for the same version and must not mind; commands get
// both values over a pipe, as the JSON of [Commands].
//
// A step that fails is repeated, [Rotation.MaxAttempts] times with growing pauses. Then the
// version stays pending and ACSCurrent where it is, and the schedule leaves that version alone
// until somebody has it rotated by hand, drops it ([Rotator.Abandon]) or starts the agent anew.
//
// # Many agents
//
// Several agents may rotate the same secret; there is no lock. The id of a new version follows
// from the secret and the version that it is to replace, and a version is written once: of those who
// put it, one succeeds, and the others find its version pending. They leave it to whoever made it for
// as long as set and test may take, and then take it up, each after a random pause. ACSCurrent is
// moved from the version that was replaced, so that nobody who comes late moves it back, where
// the upstream checks that, as ours does and the cloud documents.
//
// What this gives is: one new version, and set once while its maker lives. After that has died, or
// when its commands fail, others may run set too, for the same version and with the same values.
// What nobody can give without the help of the target is that a command which hangs for longer than its
// timeout, on a host whose agent was killed meanwhile, does nothing late.
//
// # When
//
// A rotation is due Every after the last one, which is told by the CreateTime of the version that
// it has made, then in the next window, at a moment of it that all agents agree on. The last one is the
// newest of the current version, the previous one, and those that a rotation has made: neither a
// version that was rolled back nor one that was abandoned is replaced at once. What has begun is
// finished after the window as well. An agent whose clock is ahead of that of the upstream rotates
// early, but not again within half of Every.
//
// # Design notes
//
// Version ids. They are derived from the version that is replaced, not from the moment that was due:
// the two say the same on a schedule, but rotations by hand and agents with different settings
// agree as well, and a clock has no part in it. A number is in them too, for where the version of such
// an id was abandoned.
//
// A pending version that was made for another version than the current one, because somebody
// has put a value meanwhile, is dropped: its set could take the password of the account that is now
// in use. One with an id that is not ours was put by a person, and is taken up.
//
// One password. Where the target knows one account with one password, set makes what ACSCurrent
// says wrong until finish; no order of steps can help that. Use a [Pair], or a target that takes
// two passwords at once.
package rotation
