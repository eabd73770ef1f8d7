package command

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"secretagent/upstream"
)

func (a *app) getCommand() *cobra.Command {
	var (
		value   *readFlags
		reach   reachFlags
		refresh bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "get NAME[:Label]",
		Short: "Ask the running agent for a secret, as an application would",
		Long: `Ask the endpoint of the running agent for a secret, as an application would, and print the
value byte by byte (with a newline after it on a terminal only). Without a label the
current version is meant. Of a binary secret the bytes are printed that its base64 stands for.

The unix socket of the endpoint is used where one is configured, else TCP. The token is
that of endpoint.tokenFile. Where endpoint.callers are configured, --caller says as which
one to ask; it may be left out when only one has a token. Of the configuration no more is
read than that, so that a mistake elsewhere in it is in nobody's way. With --address or
--socket it is not read at all.

With --output json the answer is the JSON of GetSecretValue. To ask the backend itself, use
"secretagent secret get".`,
		Example: `  secretagent get demo/db
  secretagent get demo/db:ACSPrevious --output json
  PGPASSWORD=$(secretagent get demo/db --field password) psql
  secretagent get demo/db --address 127.0.0.1:2025 --token-file /run/secretagent/token`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			ref, err := value.ref(args[0])
			if err != nil {
				return err
			}
			if timeout <= 0 {
				return usagef("--timeout must be positive")
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			reach.about = ref.SecretName
			client, _, err := a.client(reach)
			if err != nil {
				return err
			}
			query := url.Values{"secretId": {string(ref.SecretName)}} // not below pathPrefix, which need not be known
			for _, p := range [][2]string{
				{"format", "raw"}, {"versionId", string(ref.VersionID)}, {"versionStage", string(ref.VersionStage)}, {"field", value.field},
			} {
				if p[1] != "" {
					query.Set(p[0], p[1])
				}
			}
			if value.out.json() {
				query.Set("format", "kms")
			}
			if refresh {
				query.Set("refreshNow", "true")
			}
			done := a.progress("asking the agent")
			body, err := client.call(ctx, http.MethodGet, "/secretsmanager/get", query)
			done()
			if err != nil {
				return upstream.Wrap(err, "get", ref)
			}
			if value.out.json() {
				return a.write(body)
			}
			return a.printRaw(body)
		}),
	}
	value = newReadFlags(cmd)
	cmd.Flags().BoolVar(&refresh, "refresh", false, "make the agent ask its upstream first")
	reach.of(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "longest wait for the answer")
	return cmd
}

// readFlags are the flags of a verb that prints the value of a version.
type readFlags struct {
	versionID, field string
	out              output
}

func newReadFlags(cmd *cobra.Command) *readFlags {
	f := &readFlags{}
	f.out.of(cmd)
	cmd.Flags().StringVar(&f.versionID, "version-id", "", "`id` of the version")
	cmd.Flags().StringVar(&f.field, "field", "", "only this top-level `field` of a JSON secret")
	return f
}

// ref returns what is asked for, of which arg is the NAME[:Label].
func (f *readFlags) ref(arg string) (upstream.SecretRef, error) {
	ref, err := upstream.ParseSecretRef(arg)
	if err == nil && f.versionID != "" {
		ref.VersionID = upstream.VersionID(f.versionID)
		err = ref.Validate()
	}
	if err != nil {
		return ref, usageError{err}
	}
	if f.out.json() && f.field != "" {
		return ref, usagef("--field prints one field and --output json the whole answer: choose one")
	}
	return ref, nil
}
