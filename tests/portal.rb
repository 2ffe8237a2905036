# What Open OnDemand's dashboard does with an app's files, without the dashboard: render ERB with trim mode "-", read YAML
# safely, merge a sub-app's form into the app's, and give each kind of file the names it gets there.
# Reads {app, sub_app, values, staged} as JSON, writes what became of it as JSON; the template's files go to `staged`.
require "erb"
require "fileutils"
require "json"
require "ostruct"
require "pathname"
require "yaml"

Session = Struct.new(:session, :context) { def names = binding }
NOTHING = Object.new.instance_eval { binding }

def render(path, names = NOTHING)
  erb = ERB.new(path.read, trim_mode: "-")
  erb.filename = path.to_s
  erb.result(names)
end

def merge(one, other) = one.merge(other) { |_, a, b| a.is_a?(Hash) && b.is_a?(Hash) ? merge(a, b) : b }

asked = JSON.parse($stdin.read)
app, staged = Pathname.new(asked["app"]), Pathname.new(asked["staged"])
form = YAML.safe_load(render(app / "form.yml.erb"))
form = merge(form, YAML.safe_load(render(app / "local/#{asked["sub_app"]}.yml.erb"))) if asked["sub_app"]

# A fixed attribute is one without a form field; people fill in the others. All are strings from here on.
values = form["form"].to_h do |name|
  attribute = form["attributes"].fetch(name, {})
  [name, (attribute.is_a?(Hash) ? asked["values"].fetch(name, attribute["value"]) : attribute).to_s]
end
preset = form["form"].none? { |name| form["attributes"].fetch(name, {}).is_a?(Hash) }

context = OpenStruct.new(values.merge("staged_root" => staged.to_s))
submit = YAML.safe_load(render(app / "submit.yml.erb", context.instance_eval { binding }))

FileUtils.mkdir_p(staged)
FileUtils.cp_r("#{app}/template/.", staged, preserve: true)
about = OpenStruct.new(id: staged.basename.to_s, staged_root: staged, created_at: 0)
staged.glob("**/*.erb") do |file|
  text = render(file, Session.new(about, OpenStruct.new(values)).names)
  file.rename(file.sub_ext(""))
  file.sub_ext("").write(text)
end

card = {}
if (staged / "connection.yml").file?
  card["view"] = render(app / "view.html.erb", OpenStruct.new(YAML.safe_load((staged / "connection.yml").read)).instance_eval { binding })
end
%w[info completed].each { |name| card[name] = render(app / "#{name}.md.erb", about.instance_eval { binding }) }

# Names that Ruby's own methods would answer to instead of the attribute, in a form or in submit.yml.erb.
taken = form["form"].map(&:to_sym) & (OpenStruct.new.methods + Enumerable.instance_methods)
puts JSON.generate({ form:, values:, preset:, taken:, submit:, card: })
