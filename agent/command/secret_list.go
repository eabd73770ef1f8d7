package command

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/upstream"
)

// Pages are read to the end, but not for ever: a backend that never comes to an end is an
// error.
const (
	pageSize = 100
	maxPages = 10_000
)

// filterKeys are what --filter selects by.
var filterKeys = []string{"SecretName", "Description", "TagKey", "TagValue", "DKMSInstanceId", "SecretType", "Creator"}

func (a *app) secretListCommand() *cobra.Command {
	var (
		out     output
		filters []string
		tags    bool
	)
	cmd := &cobra.Command{
		Use: "list", SuggestFor: []string{"ls"},
		Short: "List secrets, without their values",
		Long: `List all secrets, without their values; those that wait for their deletion with its time.
--filter KEY=VALUE selects those whose KEY equals VALUE; of several filters with the same KEY
one must match, of several KEYs all. KEY is one of ` + strings.Join(filterKeys[:4], ", ") + `,
` + strings.Join(filterKeys[4:], ", ") + `.`,
		Example: `  secretagent secret list
  secretagent secret list --filter TagKey=env --filter TagValue=prod --tags`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			in := upstream.ListSecretsInput{FetchTags: tags}
			for _, f := range filters {
				k, v, ok := strings.Cut(f, "=")
				if !ok || v == "" || !slices.Contains(filterKeys, k) {
					return usagef("--filter %q: must be KEY=VALUE with KEY one of %s", f, strings.Join(filterKeys, ", "))
				}
				i := slices.IndexFunc(in.Filters, func(f upstream.Filter) bool { return f.Key == k })
				if i < 0 {
					i = len(in.Filters)
					in.Filters = append(in.Filters, upstream.Filter{Key: k})
				}
				in.Filters[i].Values = append(in.Filters[i].Values, v)
			}
			secrets, err := managed(ctx, a, func(m upstream.Manager) ([]upstream.SecretMetadata, error) {
				return allPages(func(page upstream.Page) ([]upstream.SecretMetadata, int, error) {
					in.Page = page
					answer, err := m.ListSecrets(ctx, in)
					return answer.Secrets, answer.TotalCount, err
				})
			})
			if err != nil {
				return err
			}
			slices.SortStableFunc(secrets, func(a, b upstream.SecretMetadata) int {
				return strings.Compare(string(a.SecretName), string(b.SecretName))
			})
			t := newTable("NAME", "TYPE", "UPDATED", "DELETED ON")
			if tags {
				t.columns = append(t.columns, column{name: "TAGS"})
			}
			answers := make([]metadataAnswer, 0, len(secrets))
			for _, s := range secrets {
				answers = append(answers, metadataOf(s))
				row := []string{string(s.SecretName), s.SecretType, wireTime(s.UpdateTime), wireTime(s.PlannedDeleteTime)}
				if tags {
					row = append(row, joinTags(s.Tags))
				}
				t.add(plain, row...)
			}
			return a.print(&out, map[string]any{"Secrets": answers}, t.text(false))
		}),
	}
	cmd.Flags().StringArrayVar(&filters, "filter", nil, "`KEY=VALUE` to select by; may be repeated")
	cmd.Flags().BoolVar(&tags, "tags", false, "also show tags")
	return out.of(cmd)
}

// allPages returns the items of all pages. read returns those of one and how many there are in
// all.
func allPages[T any](read func(page upstream.Page) (items []T, total int, err error)) (all []T, err error) {
	for number := 1; number <= maxPages; number++ {
		items, total, err := read(upstream.Page{Number: number, Size: pageSize})
		if err != nil {
			return nil, err
		}
		if all = append(all, items...); len(items) == 0 || len(all) >= total {
			return all, nil
		}
	}
	return nil, fmt.Errorf("the list does not end after %d pages", maxPages)
}

func (a *app) secretDescribeCommand() *cobra.Command {
	var out output
	return out.of(&cobra.Command{
		Use: "describe NAME", SuggestFor: []string{"show", "info"},
		Short: "Show what is known about a secret, without its value",
		Long: `Show what is known about a secret: type, key, description, tags, times, and when it is rotated
where the configuration says so. Never its value.`,
		Example: `  secretagent secret describe demo/db`,
		Args:    cobra.ExactArgs(1),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
			var rotation *agent.RotationStatus
			s, err := managed(ctx, a, func(m upstream.Manager) (upstream.SecretMetadata, error) {
				s, err := m.DescribeSecret(ctx, name, true)
				if err == nil {
					rotation, err = a.rotationOf(ctx, m, name)
				}
				return s, err
			})
			if err != nil {
				return err
			}
			var b strings.Builder
			for _, line := range [][2]string{
				{"Name", string(s.SecretName)}, {"ARN", s.ARN}, {"Type", s.SecretType}, {"Description", s.Description},
				{"Key", s.EncryptionKeyID}, {"Instance", s.DKMSInstanceID}, {"Created", wireTime(s.CreateTime)}, {"Updated", wireTime(s.UpdateTime)},
				{"Deleted on", wireTime(s.PlannedDeleteTime)}, {"Tags", joinTags(s.Tags)}, {"Rotation", rotationText(rotation)},
			} {
				if line[1] != "" {
					fmt.Fprintf(&b, "%-12s %s\n", line[0]+":", printable(line[1]))
				}
			}
			answer := metadataOf(s)
			answer.Rotation = rotation
			return a.print(&out, answer, b.String())
		}),
	})
}

func (a *app) secretVersionsCommand() *cobra.Command {
	var (
		out output
		all bool
	)
	cmd := &cobra.Command{
		Use:   "versions NAME",
		Short: "List the versions of a secret, without their values",
		Long: `List the versions of a secret and their labels, newest first, without their values. Versions
without a label are shown with --all only; they can be read by their id until they are
replaced.`,
		Example: `  secretagent secret versions demo/db --all`,
		Args:    cobra.ExactArgs(1),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
			versions, err := managed(ctx, a, func(m upstream.Manager) ([]upstream.SecretVersion, error) {
				return allPages(func(page upstream.Page) ([]upstream.SecretVersion, int, error) {
					answer, err := m.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: name, IncludeDeprecated: all, Page: page})
					return answer.Versions, answer.TotalCount, err
				})
			})
			if err != nil {
				return err
			}
			answers := make([]secretVersion, 0, len(versions))
			t := newTable("VERSION", "CREATED", "LABELS")
			for _, v := range versions {
				answers = append(answers, versionOf(v))
				t.add(plain, string(v.VersionID), wireTime(v.CreateTime), joinStages(v.VersionStages))
			}
			return a.print(&out, map[string]any{"SecretName": name, "Versions": answers}, t.text(false))
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "also versions without a label")
	return out.of(cmd)
}

// metadataAnswer is the JSON form of a secret without its value.
type metadataAnswer struct {
	ARN               string `json:"Arn,omitempty"`
	SecretName        upstream.SecretName
	SecretType        string
	Description       string `json:",omitempty"`
	EncryptionKeyID   string `json:"EncryptionKeyId,omitempty"`
	DKMSInstanceID    string `json:"DKMSInstanceId,omitempty"`
	CreateTime        string `json:",omitempty"`
	UpdateTime        string `json:",omitempty"`
	PlannedDeleteTime string `json:",omitempty"`

	Rotation *agent.RotationStatus `json:",omitempty"` // of the configuration

	Tags map[string]string `json:",omitempty"`

	*upstream.ManagedSecret // absent for generic secrets
}

func metadataOf(s upstream.SecretMetadata) metadataAnswer {
	answer := metadataAnswer{
		ARN: s.ARN, SecretName: s.SecretName, SecretType: s.SecretType, Description: s.Description, EncryptionKeyID: s.EncryptionKeyID,
		DKMSInstanceID: s.DKMSInstanceID,
		CreateTime:     wireTime(s.CreateTime), UpdateTime: wireTime(s.UpdateTime), PlannedDeleteTime: wireTime(s.PlannedDeleteTime),
		ManagedSecret: s.Managed,
	}
	for _, t := range s.Tags {
		if answer.Tags == nil {
			answer.Tags = map[string]string{}
		}
		answer.Tags[t.Key] = t.Value
	}
	return answer
}

func joinTags(tags []upstream.Tag) string {
	texts := make([]string, len(tags))
	for i, t := range tags {
		texts[i] = t.Key + "=" + t.Value
	}
	slices.Sort(texts)
	return strings.Join(texts, ",")
}
