package command

import (
	"context"

	"github.com/spf13/cobra"

	"secretagent/upstream"
)

func (a *app) secretPolicyCommand() *cobra.Command {
	return group("policy", "Show or set the policy of a secret in a KMS instance",
		`Show or set the policy of a secret in a KMS instance. The built-in backend has policies where
upstream.local.emulate.instanceId is set: it keeps them, and they have no effect.`,
		a.secretPolicyGetCommand(), a.secretPolicySetCommand(),
	)
}

func (a *app) secretPolicyGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "get NAME",
		Short:   "Print the policy of a secret",
		Long:    `Print the policy of a secret, JSON, as it was set. A newline is printed after it on a terminal only.`,
		Example: `  secretagent secret policy get demo/db >policy.json`,
		Args:    cobra.ExactArgs(1),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
			policy, err := managed(ctx, a, func(m upstream.Manager) (string, error) { return m.GetSecretPolicy(ctx, name) })
			if err != nil {
				return err
			}
			return a.printRaw([]byte(policy))
		}),
	}
}

func (a *app) secretPolicySetCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:     "set NAME",
		Short:   "Replace the policy of a secret",
		Long:    `Replace the policy of a secret by that of a file.`,
		Example: `  secretagent secret policy set demo/db --policy-file policy.json`,
		Args:    cobra.ExactArgs(1),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
			if path == "" {
				return usagef("no policy: give --policy-file FILE, or --policy-file - for standard input")
			}
			policy, err := a.readPolicy(path)
			if err != nil {
				return err
			}
			return a.withManager(ctx, func(m upstream.Manager) error { return m.SetSecretPolicy(ctx, name, policy) })
		}),
	}
	cmd.Flags().StringVar(&path, "policy-file", "", "`file` with the policy, JSON; - for standard input")
	return cmd
}

// readPolicy returns the policy in a file, of which the upstream is the judge.
func (a *app) readPolicy(path string) (string, error) {
	policy, source, err := a.readInput("policy", path, upstream.MaxPolicyLen)
	switch {
	case err != nil:
		return "", err
	case len(policy) == 0:
		return "", usagef("%s: the policy is empty", source)
	case len(policy) > upstream.MaxPolicyLen:
		return "", usagef("%s: the policy is larger than %d bytes", source, upstream.MaxPolicyLen)
	}
	return string(policy), nil
}
