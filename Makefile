# The two commands of the README. Everything else is Meson: meson setup build && ninja -C build.
PROMPT ?= a purple triangle spinning on the left and a yellow star bouncing on the right over a gradient teal background
# What the demo model's heads were calibrated to; empty: dense attention.
PROFILE ?= data/profiles/demo-xattention.json

.PHONY: demo programs test
.DELETE_ON_ERROR:

demo: programs
	build/haste-run -m data/demo $(if $(PROFILE),--profile "$(PROFILE)") -p "$(PROMPT)" --seed 1 -o demo.mp4

# Release build with every test; then the same tests under AddressSanitizer and UndefinedBehaviorSanitizer.
test:
	@scripts/setup.sh test
	scripts/test.sh

programs:
	@scripts/setup.sh build
	@[ -f build/build.ninja ] || meson setup build
	@ninja -C build programs
