package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"secretagent/upstream"
)

const (
	pollFor     = 30 * time.Second // one question waits for a change so long at most
	pollGrace   = 20 * time.Second // and for its answer so long beyond that
	pollAgain   = time.Second      // after a question that failed
	commandStop = 10 * time.Second // for a command to end after SIGTERM
)

func (a *app) secretWatchCommand() *cobra.Command {
	var reach reachFlags
	cmd := &cobra.Command{
		Use:   "watch NAME[:Label] -- COMMAND [ARGS]",
		Short: "Run a command each time the running agent has another version of a secret",
		Long: `Ask the running agent, as an application would, to tell when it has another version of a secret, and
run the command each time. It runs once at a time; of changes meanwhile only the last one counts.
No shell reads the command, and it is not given the value: SECRET_NAME and VERSION_ID are in its
environment, and "secretagent get" prints the value. A command that fails is reported, and the
watch goes on. So it does while no agent answers.

It ends with SIGINT or SIGTERM, which also asks a command to end that runs.`,
		Example: `  secretagent secret watch demo/db -- systemctl reload app
  secretagent secret watch demo/db -- sh -c 'echo "$SECRET_NAME is $VERSION_ID now"'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || cmd.ArgsLenAtDash() != 1 {
				return errors.New("write NAME, then --, then the command to run")
			}
			return nil
		},
		RunE: a.run(func(ctx context.Context, args []string) error {
			ref, err := upstream.ParseSecretRef(args[0])
			if err != nil {
				return usageError{err}
			}
			if _, err := exec.LookPath(args[1]); err != nil {
				return usageError{errors.New(upstream.NoProgram(args[1], err))}
			}
			reach.about = ref.SecretName
			return a.watchSecret(ctx, reach, ref, args[1:])
		}),
	}
	reach.of(cmd)
	return cmd
}

// watchSecret runs command after each change of ref, until ctx ends.
func (a *app) watchSecret(ctx context.Context, reach reachFlags, ref upstream.SecretRef, command []string) error {
	query := url.Values{"secretId": {string(ref.SecretName)}, "format": {"kms"}}
	if ref.VersionStage != "" {
		query.Set("versionStage", string(ref.VersionStage))
	}
	etag, warned := "", false
	for ctx.Err() == nil {
		version, tag, err := a.poll(ctx, reach, query, etag)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && etag == "" && !errors.Is(err, upstream.ErrUnavailable):
			return upstream.Wrap(err, "watch", ref) // it cannot be read at all
		case err != nil:
			if !warned {
				a.warningf("%s; it is asked again", errorLine(err))
			}
			warned = true
			sleep(ctx, pollAgain)
			continue
		}
		if warned = false; etag != "" && tag != etag {
			a.runWatcher(ctx, command, ref.SecretName, version)
		}
		etag = tag
	}
	return nil
}

// poll returns the version that the agent has, and its tag: at once with an empty etag, otherwise when that is
// another one or the time to wait is over.
func (a *app) poll(ctx context.Context, reach reachFlags, query url.Values, etag string) (version upstream.VersionID, tag string, err error) {
	c, r, err := a.client(reach) // with the token as it is now
	if err != nil {
		return "", "", err
	}
	wait := pollFor
	if r.MaxWait > 0 {
		wait = min(wait, r.MaxWait)
	}
	if query.Del("wait"); etag != "" {
		c.headers.Set("If-None-Match", etag)
		query.Set("wait", wait.String())
	}
	ctx, cancel := context.WithTimeout(ctx, wait+pollGrace)
	defer cancel()
	status, body, err := c.ask(ctx, http.MethodGet, "/secretsmanager/get", query)
	switch {
	case err != nil:
		return "", "", err
	case status == http.StatusNotModified:
		return "", etag, nil
	case status != http.StatusOK:
		return "", "", c.refused(status, body)
	}
	var answer struct {
		VersionID upstream.VersionID `json:"VersionId"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || c.etag == "" {
		return "", "", c.unavailable("the answer is not one of secretagent")
	}
	return answer.VersionID, c.etag, nil
}

// runWatcher runs the command once, and says how it failed.
func (a *app) runWatcher(ctx context.Context, command []string, name upstream.SecretName, version upstream.VersionID) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = commandStop
	cmd.Stdout, cmd.Stderr = a.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "SECRET_NAME="+string(name), "VERSION_ID="+string(version))
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		a.warningf("%s", errorLine(fmt.Errorf("the command failed for version %s: %w", version, err)))
	}
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
