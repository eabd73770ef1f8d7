package command

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/upstream"
)

const (
	watchEvery    = time.Second
	statusTimeout = 10 * time.Second // of one question

	clearScreen = "\x1b[H\x1b[2J\x1b[3J"
)

// statusFlags say what to ask a running agent and what to make of the answer.
type statusFlags struct {
	out                      output
	reach                    reachFlags
	watch, live, ready, open bool
	wait                     time.Duration
}

func (a *app) statusCommand() *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the running agent holds, how fresh it is, and what failed last",
		Long: `Ask the endpoint of the running agent for its state and print it in 80 columns: the upstream,
every secret with its version, age and next refresh, every file with its hook, and the
application. It never shows a value. Root and the user of the agent see everything, over its unix
sockets (endpoint.socket or that of the KMS API) and whatever callers there are. Anybody else asks
as one of the callers, chosen as for "get", and sees only the secrets that this one may read.

With --watch the agent is asked every second, and the picture drawn again when it has changed,
until it is interrupted. Colours are used on a terminal only, and not when NO_COLOR is set. The
schema of --output json is that of GET /status, described by "secretagent help status".

With --live or --ready only that is asked, without a token: made for health checks of
containers. --live asks whether the agent answers at all, --ready whether it holds and has
written everything that it was told to. With --wait that is asked until it is so, for at most
as long. Of the configuration only the address is read: a mistake in it, which the running
agent has refused, makes no agent unhealthy. With --address or --socket it is not read at all.

With --open it prints a link to the status page instead, for a browser on this host. The link
lets one browser in, once, within a minute, with the rights of the caller; the page shows
state and never a value.

Exit codes: 0 the agent is ready (with --live: it answers), 1 it runs but something that it was
told to hold or write is missing, 5 no agent answers.`,
		Example: `  secretagent status
  secretagent status --watch
  secretagent status --live --address 127.0.0.1:2025
  secretagent status --ready --wait 30s
  xdg-open "$(secretagent status --open)"
  secretagent status --output json | jq '.Secrets[] | select(.Fresh | not)'`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error { return a.status(ctx, f) }),
	}
	f.reach.of(cmd)
	cmd.Flags().BoolVar(&f.watch, "watch", false, "draw it again when it has changed, as seen every second")
	cmd.Flags().BoolVar(&f.live, "live", false, "only whether the agent answers")
	cmd.Flags().BoolVar(&f.ready, "ready", false, "only whether the agent is ready")
	cmd.Flags().DurationVar(&f.wait, "wait", 0, "with --live or --ready, how long to wait until it is so")
	cmd.Flags().BoolVar(&f.open, "open", false, "print a link that shows the same in a browser; it works once, within a minute")
	return f.out.of(cmd)
}

// conflict returns why the flags cannot be used together.
func (f statusFlags) conflict() error {
	health := f.live || f.ready
	switch {
	case f.live && f.ready, health && f.watch:
		return usagef("--live, --ready and --watch exclude each other: choose one")
	case health && (f.reach.caller != "" || f.reach.tokenFile != ""):
		return usagef("--live and --ready are asked as nobody: leave out --caller and --token-file")
	case f.wait < 0 || f.wait > 0 && !health:
		return usagef("--wait needs --live or --ready, and a time that is not negative")
	case f.open && (health || f.watch || f.out.json()):
		return usagef("--open prints a link and nothing else: use it without --live, --ready, --watch and --output json")
	case f.watch && f.out.json():
		return usagef("--watch draws a picture for people and --output json is for programs: choose one")
	}
	return nil
}

func (a *app) status(ctx context.Context, f statusFlags) error {
	if err := f.conflict(); err != nil {
		return err
	}
	if f.watch && !isTerminal(a.Stdout) {
		return usagef("--watch needs a terminal to draw on")
	}
	switch {
	case f.live:
		return a.awaitHealth(ctx, f, "Live")
	case f.ready:
		return a.awaitHealth(ctx, f, "Ready")
	case f.open:
		return a.openStatus(ctx, f.reach)
	}
	ask := func(ctx context.Context) ([]byte, error) {
		within, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		if body, err := a.askOperator(within, f.reach, http.MethodGet, "/status"); err == nil || within.Err() != nil {
			return body, err // an agent that hangs is not asked again
		}
		client, _, err := a.client(f.reach) // with the token as it is now
		if err != nil {
			return nil, err
		}
		return askStatus(ctx, client, http.MethodGet, "/status")
	}
	if f.watch {
		return a.watchStatus(ctx, ask)
	}
	body, err := ask(ctx)
	if err != nil {
		return err
	}
	status, err := parseStatus(body)
	if err != nil {
		return err
	}
	// The body itself has keys that a newer agent may have.
	err = a.print(&f.out, json.RawMessage(body), statusText(status, palette(a.colored(a.Stdout))))
	if err == nil && !status.Ready {
		return exitCode(upstream.ExitFailed)
	}
	return err
}

// askStatus asks the running agent one question.
func askStatus(ctx context.Context, client *endpointClient, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return client.call(ctx, method, path, nil)
}

func parseStatus(body []byte) (agent.Status, error) {
	var s agent.Status
	if err := json.Unmarshal(body, &s); err != nil || s.Version == "" {
		return s, &upstream.Error{Message: "the answer is not the status of an agent", Err: upstream.ErrUnavailable}
	}
	return s, nil
}

// watchStatus draws the answers of ask until ctx ends. An agent that does not answer is shown as
// such, and asked again.
func (a *app) watchStatus(ctx context.Context, ask func(context.Context) ([]byte, error)) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	shown, p := "", palette(a.colored(a.Stdout))
	for {
		body, err := ask(ctx)
		var status agent.Status
		if err == nil {
			status, err = parseStatus(body)
		}
		if _, usage := errors.AsType[usageError](err); usage {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		text := statusText(status, p)
		if err != nil {
			text = statusUnknown(err, p)
		}
		if text != shown {
			if err := a.write([]byte(clearScreen + text)); err != nil {
				return err
			}
			shown = text
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
