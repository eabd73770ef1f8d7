package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"secretagent/upstream"
)

func (a *app) secretDiffCommand() *cobra.Command {
	var out output
	return out.of(&cobra.Command{
		Use:   "diff NAME [FROM [TO]]",
		Short: "Say how two versions of a secret differ, without their values",
		Long: `Say how two versions of a secret differ, never their values: of JSON objects which fields were added
(+), removed (-) and changed (~), those of objects in them with dots between the names; of anything
else only that the values are not the same. FROM and TO are labels or ids of versions; they are
ACSPrevious and ACSCurrent when left out.`,
		Example: `  secretagent secret diff demo/db
  secretagent secret diff demo/db v1 v3 --output json | jq -r '.Changed[]'`,
		Args: cobra.RangeArgs(1, 3),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, args []string) error {
			sides := []string{string(upstream.ACSPrevious), string(upstream.ACSCurrent)}
			copy(sides, args)
			var values [2]upstream.SecretValue
			err := a.withManager(ctx, func(m upstream.Manager) error {
				versions, err := allVersions(ctx, m, name)
				for i := 0; err == nil && i < 2; i++ {
					values[i], err = m.GetSecretValue(ctx, sideOf(name, sides[i], versions))
				}
				return err
			})
			if err != nil {
				return err
			}
			d := differenceOf(&values[0], &values[1])
			return a.print(&out, d, d.text())
		}),
	})
}

// allVersions returns the versions of a secret, those without a label included.
func allVersions(ctx context.Context, m upstream.Manager, name upstream.SecretName) ([]upstream.SecretVersion, error) {
	return allPages(func(page upstream.Page) ([]upstream.SecretVersion, int, error) {
		answer, err := m.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: name, IncludeDeprecated: true, Page: page})
		return answer.Versions, answer.TotalCount, err
	})
}

// sideOf returns the version that word names: by a label that is on one of versions, otherwise by its id.
func sideOf(name upstream.SecretName, word string, versions []upstream.SecretVersion) upstream.SecretRef {
	stage := upstream.VersionStage(word)
	builtIn := stage == upstream.ACSCurrent || stage == upstream.ACSPrevious
	if builtIn || slices.ContainsFunc(versions, func(v upstream.SecretVersion) bool { return slices.Contains(v.VersionStages, stage) }) {
		return upstream.SecretRef{SecretName: name, VersionStage: stage}
	}
	return upstream.SecretRef{SecretName: name, VersionID: upstream.VersionID(word)}
}

// difference is the JSON form of diff.
type difference struct {
	SecretName upstream.SecretName
	From, To   upstream.VersionID
	Same       bool
	JSON       bool // both are objects: the fields are told
	Added      []string
	Removed    []string
	Changed    []string
}

func differenceOf(from, to *upstream.SecretValue) difference {
	d := difference{SecretName: to.SecretName, From: from.VersionID, To: to.VersionID, Added: []string{}, Removed: []string{}, Changed: []string{}}
	d.Same = from.SecretData.Equal(to.SecretData)
	before, after := objectOf(from.SecretData), objectOf(to.SecretData)
	if d.JSON = before != nil && after != nil; d.JSON {
		d.compare("", before, after)
	}
	return d
}

// objectOf returns a JSON object; nil for anything else.
func objectOf(data upstream.SecretData) map[string]any {
	text, err := upstream.JSONText(data.Reveal())
	if err != nil {
		return nil
	}
	var object map[string]any
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if dec.Decode(&object) != nil {
		return nil
	}
	return object
}

func (d *difference) compare(below string, before, after map[string]any) {
	keys := maps.Clone(before)
	maps.Copy(keys, after)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		was, wasThere := before[key]
		is, isThere := after[key]
		inner, innerWas := is.(map[string]any)
		outer, outerWas := was.(map[string]any)
		switch {
		case !wasThere:
			d.Added = append(d.Added, below+key)
		case !isThere:
			d.Removed = append(d.Removed, below+key)
		case innerWas && outerWas:
			d.compare(below+key+".", outer, inner)
		case !reflect.DeepEqual(was, is):
			d.Changed = append(d.Changed, below+key)
		}
	}
}

func (d difference) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s to %s\n", d.SecretName, d.From, d.To)
	for _, side := range []struct {
		mark  string
		names []string
	}{{"+", d.Added}, {"-", d.Removed}, {"~", d.Changed}} {
		for _, name := range side.names {
			fmt.Fprintf(&b, "%s %s\n", side.mark, printable(name))
		}
	}
	switch {
	case d.Same:
		b.WriteString("the values are the same\n")
	case len(d.Added)+len(d.Removed)+len(d.Changed) > 0:
	case d.JSON:
		b.WriteString("the fields are the same, written in another way\n")
	default:
		b.WriteString("the values are not the same\n")
	}
	return b.String()
}
