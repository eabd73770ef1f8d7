package command

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// topicFiles are the help topics. Each is a page that can be read on its own, in a browser as
// well as on a terminal; its first line is its title. A new file is a new topic.
//
//go:embed help/*.md
var topicFiles embed.FS

// exampleTopic is the name of the topic that is the configuration with every key.
const exampleTopic = "agent.yaml"

// topics returns the text of every topic by its name.
func (a *app) topics() map[string]string {
	all := map[string]string{exampleTopic: a.Example, "trust": a.Trust}
	entries, _ := topicFiles.ReadDir("help")
	for _, e := range entries {
		text, err := topicFiles.ReadFile("help/" + e.Name())
		if err != nil {
			panic(err) // what is embedded can be read
		}
		all[strings.TrimSuffix(e.Name(), ".md")] = string(text)
	}
	return all
}

// topicNames lists the topics in a line.
func (a *app) topicNames() string {
	return strings.Join(slices.Sorted(maps.Keys(a.topics())), ", ")
}

func (a *app) helpCommand() *cobra.Command {
	var man string
	cmd := &cobra.Command{
		Use:   "help [TOPIC | COMMAND]",
		Short: "Print a topic, or the help of a command",
		Long: `Print a topic: how something works, in a page. On a terminal $PAGER shows it, or less.
Without a topic, print the commands and the list of topics. The flags of a command are in
its --help; of a name that is both, such as status, this prints the topic.

With --man a manual page for every command is written into a folder, for man(1).`,
		Example: `  secretagent help configuration
  secretagent help secret put
  secretagent help --man /usr/local/share/man/man1`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if len(args) == 0 {
				names = slices.Sorted(maps.Keys(a.topics()))
			}
			if parent, _, err := cmd.Root().Find(args); err == nil {
				for _, c := range parent.Commands() {
					if c.IsAvailableCommand() {
						names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(func(_ context.Context, args []string) error {
				switch {
				case man == "":
					return a.help(cmd.Root(), args)
				case len(args) > 0:
					return usagef("--man writes the pages of all commands: name none")
				}
				return a.man(cmd.Root(), man)
			})(cmd, args)
		},
	}
	cmd.Flags().StringVar(&man, "man", "", "write manual pages into this `folder`")
	_ = cmd.MarkFlagDirname("man")
	return cmd
}

// help prints what args name.
func (a *app) help(root *cobra.Command, args []string) error {
	all := a.topics()
	if len(args) == 0 {
		if err := root.Help(); err != nil {
			return err
		}
		return a.write([]byte("\n" + topicList(all)))
	}
	if text, ok := all[args[0]]; ok && len(args) == 1 {
		if args[0] != exampleTopic && isTerminal(a.Stdout) {
			text = layout(text)
		}
		return a.page(text)
	}
	if cmd, rest, err := root.Find(args); err == nil && len(rest) == 0 && cmd != root {
		return cmd.Help()
	}
	name := strings.Join(args, " ")
	err := usagef("there is neither a topic nor a command %q", name)
	if near := root.SuggestionsFor(args[0]); len(args) == 1 && len(near) > 0 {
		return withHint(err, "did you mean %s?", near[0])
	}
	return withHint(err, "topics: %s", a.topicNames())
}

// topicList returns the topics with their titles, as the help of commands is laid out.
func topicList(all map[string]string) string {
	list := "Topics, each printed by \"secretagent help TOPIC\":\n"
	for _, name := range slices.Sorted(maps.Keys(all)) {
		title := "Every key of the configuration, with its default"
		if name != exampleTopic {
			title, _, _ = strings.Cut(strings.TrimPrefix(all[name], "# "), "\n")
		}
		list += fmt.Sprintf("  %-13s %s\n", name, title)
	}
	return list + "The examples that they name are in the source, and in /usr/share/doc/secretagent of the packages.\n"
}

// page writes a text, on a terminal through a pager.
func (a *app) page(text string) error {
	if !isTerminal(a.Stdout) {
		return a.write([]byte(text))
	}
	pager := strings.Fields(cmp.Or(a.Getenv("PAGER"), "less -FRX"))
	if len(pager) == 0 { // of spaces: the user wants none
		return a.write([]byte(text))
	}
	path, err := exec.LookPath(pager[0])
	if err != nil {
		return a.write([]byte(text))
	}
	// The pager gets the signals of the terminal itself, and ends when its reader says so.
	cmd := exec.Command(path, pager[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), a.Stdout, a.terminal
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("show the page with $PAGER, %s: %w", pager[0], err)
	}
	return nil
}

// width is that of a page on a terminal, in columns.
const width = 100

// layout makes the tables of a page columns, which a terminal shows better than Markdown.
func layout(markdown string) string {
	var out strings.Builder
	var table [][]string
	flush := func() {
		writeTable(&out, table)
		table = nil
	}
	for line := range strings.Lines(markdown) {
		cells, isRow := tableRow(strings.TrimSpace(line))
		if isRow {
			table = append(table, cells)
			continue
		}
		flush()
		switch item, isItem := strings.CutPrefix(line, "- "); {
		case strings.HasPrefix(line, "<!--"):
		case isItem && columns(line) > width:
			fmt.Fprintln(&out, wrap(&out, "-", 2, item))
		default:
			out.WriteString(line)
		}
	}
	flush()
	return out.String()
}

// tableRow returns the cells of a row.
func tableRow(line string) ([]string, bool) {
	inner, begins := strings.CutPrefix(line, "|")
	inner, ends := strings.CutSuffix(inner, "|")
	if !begins || !ends {
		return nil, false
	}
	const bar = "\x00"
	cells := strings.Split(strings.ReplaceAll(inner, `\|`, bar), "|")
	for i := range cells {
		cells[i] = strings.TrimSpace(strings.ReplaceAll(cells[i], bar, "|"))
	}
	return cells, true
}

// writeTable writes rows: the last column is wrapped, and a cell that is too long for its column
// has a line of its own.
func writeTable(w io.Writer, rows [][]string) {
	if len(rows) < 2 {
		return
	}
	rows = slices.Delete(rows, 1, 2) // the line below the head
	const widest = 36
	widths := make([]int, len(rows[0])-1)
	for _, row := range rows {
		for i := range widths {
			if n := columns(row[i]); n <= widest {
				widths[i] = max(widths[i], n)
			}
		}
	}
	for _, row := range rows {
		line, indent := "", 2
		for i, cell := range row {
			if cell != "" && i > 0 && columns(line) > indent-2 {
				fmt.Fprintln(w, line)
				line = ""
			}
			line = wrap(w, line, indent, cell)
			if i < len(widths) {
				indent += widths[i] + 2
			}
		}
		fmt.Fprintln(w, line)
	}
}

// wrap adds text to line from column indent on. It writes the lines that become full and returns
// the last one.
func wrap(w io.Writer, line string, indent int, text string) string {
	for word := range strings.FieldsSeq(text) {
		if n := columns(line); n > indent && n+1+columns(word) > width {
			fmt.Fprintln(w, line)
			line = ""
		}
		if n := columns(line); n < indent {
			line += strings.Repeat(" ", indent-n)
		} else {
			line += " "
		}
		line += word
	}
	return line
}

// columns returns how wide text is; the pages have no wide characters.
func columns(text string) int { return len([]rune(text)) }
