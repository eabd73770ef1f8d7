package command

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	var out output
	return out.of(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long: `Print the version of this program, the Go release and platform it was built with, and the
commit where it is known.`,
		Example: `  secretagent version --output json`,
		Args:    cobra.NoArgs,
		RunE: a.run(func(_ context.Context, _ []string) error {
			v := versionAnswer{Version: a.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Commit: commit()}
			line := fmt.Sprintf("secretagent %s (%s, %s", v.Version, v.Go, v.Platform)
			if v.Commit != "" {
				line += ", commit " + v.Commit
			}
			return a.print(&out, v, line+")\n")
		}),
	})
}

// versionAnswer is the JSON form of version.
type versionAnswer struct {
	Version, Go, Platform string
	Commit                string `json:",omitempty"`
}

// commit returns the revision that the build was stamped with; empty when it was not.
func commit() string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	settings := map[string]string{}
	for _, s := range build.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision != "" && settings["vcs.modified"] == "true" {
		revision += "-modified"
	}
	return revision
}
