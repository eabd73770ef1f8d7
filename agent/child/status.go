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

// Status is what a [Supervisor] tells about itself, also as JSON. It holds no value of any
// secret.
type Status struct {
	Command   string // the program, without its arguments
	State     State
	PID       int       `json:",omitzero"` // zero while no application runs
	StartedAt time.Time `json:",omitzero"` // of the running or last application; zero before the first
	Restarts  int       // because of changes
	Signals   int       // sent because of changes

	// Outdated tells that the variables have changed and the application does not know: the
	// change is ignored, waits for its turn, or could not be acted upon.
	Outdated bool

	// ChangedAt is when a difference of the variables was last found; zero before the first.
	ChangedAt time.Time `json:",omitzero"`

	// Failing tells that the last attempt to follow the secrets failed. Error is what last
	// went wrong, at ErrorAt; it stays after things went well again.
	Failing bool
	Error   string    `json:",omitzero"`
	ErrorAt time.Time `json:",omitzero"`

	ExitCode int `json:",omitzero"` // once State is Ended and the application ran
}

// Event is one thing that happened.
type Event string

// The values of Event.
const (
	Started      Event = "started"       // for the first time
	Restarted    Event = "restarted"     // with other variables
	Signalled    Event = "signalled"     // ChangeSignal was sent
	Ignored      Event = "ignored"       // the variables changed and OnChange is IgnoreChange
	Unchanged    Event = "unchanged"     // a notice of change, but the same variables
	Deferred     Event = "deferred"      // a change has to wait because of MaxRestarts
	ReadFailed   Event = "read_failed"   // the variables could not be read, or do not fit
	StartFailed  Event = "start_failed"  // the application could not be started
	SignalFailed Event = "signal_failed" // ChangeSignal could not be sent
	Killed       Event = "killed"        // the grace was over
	Exited       Event = "exited"        // the application ended, asked or not
)
