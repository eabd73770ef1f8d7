package rotation

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"secretagent/upstream"
)

// Upstream is what a rotation needs of a Secrets Manager; an [upstream.Manager] is one.
type Upstream interface {
	GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error)
	PutSecretValue(ctx context.Context, in upstream.PutSecretValueInput) (upstream.SecretVersion, error)
	UpdateSecretVersionStage(ctx context.Context, in upstream.UpdateSecretVersionStageInput) error
	ListSecretVersionIDs(ctx context.Context, in upstream.ListSecretVersionIDsInput) (upstream.ListSecretVersionIDsOutput, error)
}

// Options are what a [Rotator] is made of.
type Options struct {
	Rotations []Rotation // one for each secret

	// Upstream returns where the secrets are. It is asked before each call, so that a client can
	// be exchanged meanwhile.
	Upstream func() Upstream

	// Run runs a command and returns its answer. It must be bounded by the timeout of the command.
	Run func(ctx context.Context, e Execution) ([]byte, error)

	// Observe hears of each rotation that ended; nil: nobody does. It is called by several
	// goroutines.
	Observe func(Event)

	Logger *slog.Logger // nil discards
}

// Rotation says how one secret is rotated.
type Rotation struct {
	Secret upstream.SecretName

	Every  time.Duration // from one rotation to the next; zero: only when asked
	Window *Window       // nil: any time
	Jitter time.Duration // at most so much later, the same for all agents

	New       NewValue
	Set, Test *Command // nil: nothing to do

	PendingStage upstream.VersionStage // empty: Pending
	MaxAttempts  int                   // zero: 5
}

// NewValue says how the next value is made: by Command, or from the current value with a new password.
type NewValue struct {
	Password *Password // nil with a Pair: the field password
	Pair     *Pair     // two accounts in turn; nil: the same account

	// Command prints the value, without a last newline that it may add. It gets the current value
	// on its standard input. Agents that rotate at the same time each run it, and the value of
	// one of them is used.
	Command *Command
}

// Password is a random password in a field of a JSON secret, or as the whole secret.
type Password struct {
	Field string // empty: the secret is the password
	upstream.RandomPasswordInput
}

// Pair are accounts that take turns, so that the one before goes on to work.
type Pair struct {
	Field string   // of the JSON secret: the account in use
	Users []string // two or more
}

// Command is a program, its arguments and the bound of one run.
type Command struct {
	Argv    []string
	Timeout time.Duration // zero: 30 s
}

func (c *Command) timeout() time.Duration {
	if c == nil {
		return 0
	}
	return cmp.Or(c.Timeout, 30*time.Second)
}

// Execution is one run of a [Command].
type Execution struct {
	Command
	Input  []byte                 // for its standard input; it is overwritten afterwards
	Answer int                    // what it prints is the answer, of so many bytes at most; zero: it goes to the log, masked
	Hide   []upstream.SecretValue // to mask
}

// Commands is the JSON that set and test get on their standard input.
type Commands struct {
	SecretName upstream.SecretName
	Pending    Version // to put into force, or to try
	Current    Version // in use until finish
}

// Version is a version with its value.
type Version struct {
	VersionID      upstream.VersionID `json:"VersionId"`
	SecretData     string
	SecretDataType string
}

// twoPhase reports whether a new version waits under the pending label first.
func (r *Rotation) twoPhase() bool { return r.Set != nil || r.Test != nil }

func (r Rotation) withDefaults() Rotation {
	r.PendingStage = cmp.Or(r.PendingStage, "Pending")
	r.MaxAttempts = cmp.Or(r.MaxAttempts, 5)
	if r.New.Pair != nil && r.New.Password == nil {
		r.New.Password = &Password{Field: "password", RandomPasswordInput: upstream.RandomPasswordInput{RequireEachIncludedType: true}}
	}
	return r
}

// Validate checks the rotations. The error is [upstream.OptionErrors], with keys from rotations[0] on.
func (o Options) Validate() error {
	var p upstream.OptionErrors
	seen := map[upstream.SecretName]int{}
	for i := range o.Rotations {
		key, r := fmt.Sprintf("rotations[%d]", i), o.Rotations[i].withDefaults()
		if first, twice := seen[r.Secret]; twice {
			p.Addf(key+".secret", string(r.Secret), "is rotated by rotations[%d] already: keep one", first)
		} else {
			seen[r.Secret] = i
		}
		p.Add(key, r.validate())
	}
	return p.Err()
}

func (r Rotation) validate() error {
	var p upstream.OptionErrors
	p.Add("secret", r.Secret.Validate())
	p.Add("pendingStage", r.PendingStage.Validate())
	if r.PendingStage.BuiltIn() {
		p.Addf("pendingStage", string(r.PendingStage), "must be a label of its own: this one is built in")
	}
	if r.Every < 0 || r.Jitter < 0 {
		p.Addf("every", "", "neither every nor jitter can be negative")
	}
	if r.Every > 0 && r.Jitter > r.Every {
		p.Addf("jitter", r.Jitter.String(), "must not be longer than every, %s", r.Every)
	}
	if r.MaxAttempts < 1 {
		p.Addf("maxAttempts", "", "must be at least 1")
	}
	if r.Window != nil {
		p.Add("window", r.Window.validate())
		if r.Every == 0 {
			p.Addf("window", "", "belongs to every: a rotation by hand does not wait for it")
		}
	}
	p.Add("new", r.New.validate())
	return p.Err()
}

func (n *NewValue) validate() error {
	var p upstream.OptionErrors
	switch {
	case n.Command != nil && (n.Password != nil || n.Pair != nil):
		p.Addf("command", "", "makes the whole value: leave password and pair away")
	case n.Command == nil && n.Password == nil:
		p.Addf("", "", "must have password, pair or command")
	}
	if pw := n.Password; pw != nil {
		if _, err := pw.Draw(); err != nil {
			e := err.(*upstream.Error) // Draw returns no other
			p.Addf("password", "", "%s: %s", e.Parameter, e.Reason)
		}
	}
	if n.Pair == nil {
		return p.Err()
	}
	users := slices.Clone(n.Pair.Users)
	slices.Sort(users)
	switch {
	case n.Pair.Field == "":
		p.Addf("pair.field", "", "must name the field that holds the account")
	case n.Password != nil && (n.Password.Field == "" || n.Password.Field == n.Pair.Field):
		p.Addf("password.field", n.Password.Field, "must name another field than that of the account")
	}
	if len(users) < 2 || len(slices.Compact(users)) < len(n.Pair.Users) || users[0] == "" {
		p.Addf("pair.users", "", "must be two accounts or more, each another")
	}
	return p.Err()
}
