package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"secretagent/upstream"
)

// reloadTimeout is longer than the agent takes to say that it could not.
const reloadTimeout = 40 * time.Second

func (a *app) reloadCommand() *cobra.Command {
	var (
		out   output
		reach reachFlags
	)
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the running agent read its configuration again",
		Long: `Ask the running agent to read its configuration again, and everything that it names, and say what
came of it. The agent also does so by itself when one of these files changes, and on SIGHUP.

A configuration that is wrong, or that changes what only a restart can change, is refused: the
agent goes on as it was, and every problem is printed as "secretagent check" prints it.

Only root and the user of the agent may ask, over one of its unix sockets: endpoint.socket, or that
of the KMS API.

Exit codes: 0 reloaded, 1 refused, 4 this user may not ask, 5 no agent answers.`,
		Example: `  secretagent reload --config /etc/secretagent/agent.yaml`,
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
			defer cancel()
			body, err := a.askOperator(ctx, reach, http.MethodPost, "/reload")
			if errors.Is(err, upstream.ErrAccessDenied) {
				return withHint(err, "ask as root, or as the user of the agent")
			} else if err != nil {
				return err
			}
			var answer struct {
				Reloaded      bool
				Error, Report string
			}
			switch err := json.Unmarshal(body, &answer); {
			case err != nil:
				return &upstream.Error{Message: "the answer is none of an agent", Err: upstream.ErrUnavailable}
			case answer.Reloaded || out.json():
				if err := a.print(&out, json.RawMessage(body), "the configuration is reloaded\n"); err != nil || answer.Reloaded {
					return err
				}
				return exitCode(upstream.ExitFailed)
			}
			a.printf("the configuration is not reloaded, the agent goes on as it was:")
			if answer.Report == "" {
				answer.Report = answer.Error + "\n"
			}
			fmt.Fprint(a.Stderr, answer.Report)
			return exitCode(upstream.ExitFailed)
		}),
	}
	cmd.Flags().StringVar(&reach.socket, "socket", "", "ask the agent at the unix socket `FILE`, and read no configuration")
	return out.of(cmd)
}
