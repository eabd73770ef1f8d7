package command

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// Build says which program this is.
type Build struct {
	Version string // such as 1.2.3
	Commit  string // revision of the source
	Date    string // of that revision, or of the build
}

// complete fills in what is empty with what the Go command has recorded: in a checkout the tag
// or a version made from the revision, the revision and its time.
func (b Build) complete() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision, tagged := settings["vcs.revision"], strings.TrimPrefix(info.Main.Version, "v")
	if revision != "" && settings["vcs.modified"] == "true" {
		revision += "-modified"
	}
	if tagged == "(devel)" {
		tagged = ""
	}
	return Build{cmp.Or(b.Version, tagged, "dev"), cmp.Or(b.Commit, revision), cmp.Or(b.Date, settings["vcs.time"])}
}

func (a *app) versionCommand() *cobra.Command {
	var out output
	return out.of(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long: `Print the version of this program, the Go release and platform it was built with, and the
commit and its date where they are known. --version and -v print the same.`,
		Example: `  secretagent version --output json`,
		Args:    cobra.NoArgs,
		RunE: a.run(func(_ context.Context, _ []string) error {
			v := a.Build.answer()
			return a.print(&out, v, v.line())
		}),
	})
}

// versionAnswer is the JSON form of version.
type versionAnswer struct {
	Version, Go, Platform string
	Commit                string `json:",omitempty"`
	Date                  string `json:",omitempty"`
}

func (b Build) answer() versionAnswer {
	return versionAnswer{b.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, b.Commit, b.Date}
}

// line is the text form of version.
func (v versionAnswer) line() string {
	s := fmt.Sprintf("secretagent %s (%s, %s", v.Version, v.Go, v.Platform)
	if v.Commit != "" {
		s += ", commit " + v.Commit
	}
	if v.Date != "" {
		s += ", " + v.Date
	}
	return s + ")\n"
}
