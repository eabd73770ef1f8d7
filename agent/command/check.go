package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"secretagent/agent/config"
	"secretagent/upstream"
)

func (a *app) checkCommand() *cobra.Command {
	var out *output
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration",
		Long: `Check the configuration file and report every problem of it at once, each with line, column,
key and what is allowed. Nothing is opened, started or created.

Exit code 0: the file is valid; 2: it is not.`,
		Example: `  secretagent check --config agent.yaml
  secretagent check --output json | jq -r '.Problems[].Key'`,
		Args: cobra.NoArgs,
		RunE: a.run(func(_ context.Context, _ []string) error {
			path, err := a.configFile()
			if err != nil {
				return err
			}
			_, err = config.Load(path)
			if !out.json {
				if err != nil {
					return err
				}
				return a.write(fmt.Appendf(nil, "%s is valid\n", path))
			}
			answer := checkAnswer{File: path, Valid: err == nil, Problems: []checkProblem{}}
			problems, _ := errors.AsType[config.Problems](err)
			for _, p := range problems {
				answer.Problems = append(answer.Problems, checkProblem{p.Line, p.Column, p.Key, p.Value, p.Reason})
			}
			if err := a.printJSON(answer); err != nil {
				return err
			}
			if err != nil {
				return exitCode(upstream.ExitUsage)
			}
			return nil
		}),
	}
	out = outputFlag(cmd)
	return cmd
}

// checkAnswer is the JSON form of check.
type checkAnswer struct {
	File     string
	Valid    bool
	Problems []checkProblem
}

type checkProblem struct {
	Line, Column int
	Key, Value   string `json:",omitempty"`
	Reason       string
}
