package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version is the program's version: the module's, or the revision it was built
// from.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+changes"
			}
		}
	}
	if rev == "" {
		return "devel"
	}
	return "devel-" + rev + dirty
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: args(0, 0),
		Example: examples("blockgate version", "blockgate version -o json", "blockgate status"),
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": Version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			if a.output == "table" {
				_, err := fmt.Fprintf(a.Stdout, "blockgate %s (%s, %s)\n", v["version"], v["go"], v["platform"])
				return err
			}
			return a.answer(v, nil)
		},
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish|powershell", Short: "Print a shell completion script",
		Long:      `Print a script that completes commands, flags, and the names the daemon knows.`,
		Args:      args(1, 1),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Example: examples("source <(blockgate completion bash)", "blockgate completion zsh > ~/.zfunc/_blockgate",
			"blockgate completion fish > ~/.config/fish/completions/blockgate.fish"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			case "fish":
				return root.GenFishCompletion(a.Stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.Stdout)
			}
			return usage(cmd, "there is no completion for %q: use bash, zsh, fish or powershell", args[0])
		},
	}
}
