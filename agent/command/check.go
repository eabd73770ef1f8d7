package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
)

func (a *app) checkCommand() *cobra.Command {
	var (
		out  output
		ping bool
	)
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration",
		Long: `Check the configuration file and report every problem of it at once, each with line, column,
key and what is allowed. What it names is looked at too: templates, tokens, keyrings and
certificates are read, programs, users and groups looked for. What passes here is what
"run" accepts. Nothing is started or created. A caller whose token file is of no use gets a warning:
"run" shuts that caller out and goes on, so that no application can keep the others from starting.
So does a declared secret that a mount of endpoint.vaultMounts hides.

With --probe a valid configuration is also tried: every declared secret is read once from every
endpoint of the upstream, and its value thrown away. Where none is declared, secretagent-probe
is asked for, and "not found" or "denied" will do. The answer says which credential source was
used, never what it gave. In the cloud it is also asked whether the credentials may write, by
taking a label off that is not there: for rotations they must, otherwise there is a warning.

Exit code 0: the file is valid; 2: it is not; 3, 4 or 5: a probe failed.`,
		Example: `  secretagent check --config agent.yaml
  secretagent check --config agent.yaml --probe
  secretagent check --output json | jq -r '.Problems[].Key'`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			source, err := a.source()
			if err != nil {
				return err
			}
			cfg, err := source.Load(agent.CheckForUser)
			if err != nil && !out.json() {
				return err
			}
			answer := checkAnswer{File: source.File, Valid: err == nil, Problems: []checkProblem{}}
			problems, _ := errors.AsType[config.Problems](err)
			for _, p := range problems {
				answer.Problems = append(answer.Problems, newCheckProblem(p))
			}
			text := source.File + " is valid\n"
			if err == nil {
				answer.StateDir = cfg.StateDir()
				text += "the state directory is " + answer.StateDir + "\n"
				if answer.CheckedFor = agent.OtherUser(cfg); answer.CheckedFor != 0 {
					text += fmt.Sprintf("it belongs to uid %d: what only an agent of root would refuse is left out\n", answer.CheckedFor)
				}
				if answer.TokenFrom = agent.TokenSource(&cfg.Endpoint); answer.TokenFrom != "" {
					text += tokenFrom + answer.TokenFrom + "\n"
				}
				_, warned := source.Load(agent.Warnings)
				warnings, _ := errors.AsType[config.Problems](warned)
				for _, w := range warnings {
					answer.Warnings = append(answer.Warnings, newCheckProblem(w))
					text += fmt.Sprintf("warning: %s\n%s", w, w.Excerpt)
				}
			}
			var failed error
			if ping && err == nil {
				answer.Probes, text, failed = a.probe(ctx, cfg)
			}
			if err := a.print(&out, answer, text); err != nil {
				return err
			}
			if err != nil {
				return exitCode(upstream.ExitUsage)
			}
			return failed
		}),
	}
	a.keyringFlag(cmd)
	cmd.Flags().BoolVar(&ping, "probe", false, "also read every declared secret from every endpoint")
	return out.of(cmd)
}

// tokenFrom begins the line that says which variable the token of the endpoint comes from.
const tokenFrom = "the token comes from the environment: "

// probe returns what every endpoint answered, also as a table. The error is that of the first
// failure.
func (a *app) probe(ctx context.Context, cfg *config.Config) (probes []checkProbe, text string, failed error) {
	done := a.progress(asking)
	results, failed := agent.Probe(ctx, cfg, a.logger())
	done()
	t := newTable("ENDPOINT", "CREDENTIAL", "SECRET", "RESULT")
	for _, r := range results {
		p := checkProbe{Endpoint: r.Endpoint, Credential: r.Credential, SecretName: string(r.Secret)}
		if r.Err != nil {
			p.Error, failed = r.Err.Error(), cmp.Or(failed, r.Err)
		}
		probes = append(probes, p)
		p.Warning = r.Warning
		t.add(plain, p.Endpoint, p.Credential, p.SecretName, cmp.Or(p.Error, p.Warning, "ok"))
	}
	return probes, t.text(false), failed
}

// checkAnswer is the JSON form of check.
type checkAnswer struct {
	File     string
	Valid    bool
	StateDir string `json:",omitempty"` // what the file does not place elsewhere is here

	// CheckedFor is the uid of the agent, where root checks for another user.
	CheckedFor int `json:",omitempty"`

	Problems []checkProblem
	Warnings []checkProblem `json:",omitempty"` // what "run" goes on without
	Probes   []checkProbe   `json:",omitempty"`

	TokenFrom string `json:",omitempty"` // variable, and the file that it names
}

type checkProbe struct {
	Endpoint   string
	Credential string `json:",omitempty"`
	SecretName string
	Error      string `json:",omitempty"`
	Warning    string `json:",omitempty"`
}

type checkProblem struct {
	Line, Column int
	Key, Value   string `json:",omitempty"`
	Reason       string
}

func newCheckProblem(p *config.Error) checkProblem {
	return checkProblem{p.Line, p.Column, p.Key, p.Value, p.Reason}
}
