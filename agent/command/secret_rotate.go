package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/upstream"
)

func (a *app) secretRotateCommand() *cobra.Command {
	var (
		out             output
		dryRun, abandon bool
		force           choice
	)
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a secret its next version now, as its rotation in the configuration says",
		Long: `Give a secret its next version now, as its element of "rotations" in the configuration says,
whenever the next one is due, and wait until it is current. The commands set and test run here,
not in the running agent. Print name, old and new version id.

A version that is pending already is gone on with and not made again. One that an agent has just
made is left to it for as long as its commands may take. A step that fails is repeated,
maxAttempts times; then the version stays pending, ACSCurrent stays where it is, and the exit
code is not 0.

--dry-run shows what is there and the steps that would follow. --abandon drops the pending
version: what set has done in the target stays. --force-step does one step with the pending
version, whatever the others say: set, test, or finish, which makes it current untested.`,
		Example: `  secretagent secret rotate app/db
  secretagent secret rotate app/db --dry-run
  secretagent secret rotate app/db --abandon
  secretagent secret rotate app/db --force-step finish`,
		Args: cobra.ExactArgs(1),
	}
	cmd.RunE = a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
		return a.withRotator(ctx, name, func(r *agent.Rotator) error {
			switch {
			case dryRun:
				plan, err := r.Plan(ctx, name)
				if err != nil {
					return err
				}
				return a.print(&out, plan, planText(plan))
			case abandon:
				id, err := r.Abandon(ctx, name)
				if err != nil {
					return err
				}
				text := fmt.Sprintf("%s %s is not pending any more\n", name, id)
				if id == "" {
					text = fmt.Sprintf("%s has no pending version\n", name)
				}
				return a.print(&out, map[string]any{"SecretName": name, "AbandonedVersionId": id}, text)
			case force.word != "":
				result, err := r.Force(ctx, name, agent.RotationStep(force.word))
				if err != nil {
					return err
				}
				return a.print(&out, result, fmt.Sprintf("%s %s: step %s is done\n", name, result.To, force.word))
			}
			result, err := r.Rotate(ctx, name)
			if err != nil {
				return withHint(err, "a pending version is gone on with by the next run; --abandon drops it, --force-step does one step")
			}
			by := ""
			if result.Followed {
				by = ", by another agent"
			}
			return a.print(&out, result, fmt.Sprintf("%s %s is current after %.3gs, in place of %s%s\n", name, result.To, result.TookSeconds, result.From, by))
		})
	})
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing and run nothing; show the steps")
	cmd.Flags().BoolVar(&abandon, "abandon", false, "drop the pending version")
	force.words = []string{"set", "test", "finish"}
	force.flag(cmd, "force-step", "do one `step` with the pending version: set, test or finish")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "abandon", "force-step")
	return out.of(cmd)
}

// withRotator calls fn with the rotations of the configuration, on its upstream.
func (a *app) withRotator(ctx context.Context, name upstream.SecretName, fn func(*agent.Rotator) error) error {
	cfg, err := a.loadConfig(agent.CheckRotations)
	if err != nil {
		return err
	}
	if !agent.Rotates(cfg, name) {
		return withHint(usagef("%s: no element of rotations is about this secret", name), "secretagent help rotation says how to configure one")
	}
	return a.withManager(ctx, func(m upstream.Manager) error {
		r, err := agent.NewRotator(cfg, m, a.logger())
		if err != nil {
			return err
		}
		return fn(r)
	})
}

// rotationOf returns how the configuration has a secret rotated; nil when it does not.
func (a *app) rotationOf(ctx context.Context, m upstream.Manager, name upstream.SecretName) (*agent.RotationStatus, error) {
	cfg, err := a.loadConfig()
	if err != nil || !agent.Rotates(cfg, name) {
		return nil, err
	}
	r, err := agent.NewRotator(cfg, m, a.logger())
	if err != nil {
		return nil, err
	}
	status, err := r.Look(ctx, name)
	return &status, err
}

// rotationText says when a secret is rotated.
func rotationText(r *agent.RotationStatus) string {
	if r == nil {
		return ""
	}
	text := "last " + wireTime(r.Last)
	if r.Next.IsZero() {
		text += ", by hand only"
	} else {
		text += ", next " + wireTime(r.Next)
	}
	if r.Pending != "" {
		text += ", version " + string(r.Pending) + " is pending"
	}
	return text
}

// planText draws a plan for people.
func planText(p agent.RotationPlan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s is current", p.SecretName, p.Current)
	if p.Pending != "" {
		fmt.Fprintf(&b, ", %s is pending", p.Pending)
	}
	b.WriteString("\n")
	for i, step := range p.Steps {
		fmt.Fprintf(&b, "%d. %s", i+1, step)
		if program := p.Commands[step]; program != "" {
			b.WriteString(": " + program)
		}
		if step == agent.RotationWait {
			b.WriteString(": the version is left to another agent for up to " + p.LeftFor)
		}
		b.WriteString("\n")
	}
	return b.String()
}
