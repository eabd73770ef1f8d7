package child

import "time"

// State is what a [Supervisor] is doing.
type State string

// The values of State.
const (
	Waiting  State = "waiting"  // for the variables, or for Run
	Running  State = "running"  // the application runs
	Stopping State = "stopping" // the application was asked to end
	Ended    State = "ended"    // for good
)

// Status is what a [Supervisor] tells about itself. It holds no value of any secret.
type Status struct {
	State     State
	Command   string    // the program, without its arguments
	PID       int       // zero while no application runs
	StartedAt time.Time // of the running or last application; zero before the first
	Restarts  int       // because of changes
	Signals   int       // sent because of changes

	// Outdated tells that the variables have changed and the application does not know: the
	// change is ignored, waits for its turn, or could not be acted upon.
	Outdated bool

	// LastChange is when a difference of the variables was last found; zero before the first.
	LastChange time.Time

	// LastError is what last went wrong, at LastErrorAt; it stays after things went well
	// again. Failing tells whether they did not.
	LastError   string
	LastErrorAt time.Time
	Failing     bool

	ExitCode int // once State is Ended and the application ran
}

// EventKind says what happened.
type EventKind string

// The values of EventKind.
const (
	Started      EventKind = "started"       // for the first time
	Restarted    EventKind = "restarted"     // with other variables
	Signalled    EventKind = "signalled"     // ChangeSignal was sent
	Ignored      EventKind = "ignored"       // the variables changed and OnChange is IgnoreChange
	Unchanged    EventKind = "unchanged"     // a notice of change, but the same variables
	Deferred     EventKind = "deferred"      // a change has to wait because of MaxRestarts
	ReadFailed   EventKind = "read_failed"   // the variables could not be read, or do not fit
	StartFailed  EventKind = "start_failed"  // the application could not be started
	SignalFailed EventKind = "signal_failed" // ChangeSignal could not be sent
	Killed       EventKind = "killed"        // the grace was over
	Exited       EventKind = "exited"        // the application ended, asked or not
)

// Event is one thing that happened.
type Event struct {
	Kind EventKind
	PID  int   // of the application concerned; zero when there is none
	Code int   // exit code of Exited
	Err  error // of ReadFailed, StartFailed and SignalFailed
}
