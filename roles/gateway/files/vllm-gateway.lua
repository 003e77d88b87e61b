-- What HAProxy has no rules for: the JSON of a request, the limits of a key, and what an answer has cost.
--
-- Both processes of a gateway load it: the gateway itself, and the reader of long bodies. It keeps its counts in plain
-- tables, so HAProxy runs it in one thread. Its state is lost with its process; a request in flight then counts no more.

local byte, char, find, match, sub = string.byte, string.char, string.find, string.match, string.sub
local QUOTE, COMMA, COLON, BACKSLASH = 34, 44, 58, 92
local OPEN_LIST, OPEN_OBJECT, CLOSE_OBJECT = 91, 123, 125

-- JSON. The text is a stranger's and may end anywhere: a body that is longer than the buffer is read as far as it is
-- there. Python's json.loads takes the last of two equal keys, and so does this.

local function skip_space(text, at)
    return match(text, "^[ \t\n\r]*()", at)
end

-- A text of many quotes, brackets and keys would take the time of others. 'budget.left' is how many of them are still
-- read, and below 0 at the end if the text had more.
local MOST_PARTS, KEY_PARTS = 2000000, 4

local function new_budget()
    return { left = MOST_PARTS }
end

local function spend(budget, parts)
    budget.left = budget.left - parts
    return budget.left >= 0
end

-- The place after the string whose first quote is at 'at'; nil: it does not end.
local function string_end(text, at, budget)
    local from = at + 1
    while true do
        local quote = find(text, '"', from, true)
        if not quote then
            return nil
        end
        local first = quote
        while byte(text, first - 1) == BACKSLASH do
            first = first - 1
            if not spend(budget, 1) then
                return nil
            end
        end
        if (quote - first) % 2 == 0 then
            return quote + 1
        end
        if not spend(budget, 1) then
            return nil
        end
        from = quote + 1
    end
end

-- The place after the value at 'at'; nil: there is no value, or it does not end.
local function value_end(text, at, budget)
    local first = byte(text, at)
    if first == QUOTE then
        return string_end(text, at, budget)
    end
    if first ~= OPEN_OBJECT and first ~= OPEN_LIST then
        return match(text, "^[%w%.%+%-]+()", at)
    end
    local depth, from = 0, at
    while true do
        local place = find(text, '["%[%]{}]', from)
        if not place or not spend(budget, 1) then
            return nil
        end
        local found = byte(text, place)
        if found == QUOTE then
            from = string_end(text, place, budget)
            if not from then
                return nil
            end
        else
            depth = depth + ((found == OPEN_OBJECT or found == OPEN_LIST) and 1 or -1)
            from = place + 1
            if depth == 0 then
                return from
            end
        end
    end
end

local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

-- The character of the \u escape at 'at', and the place after it; a pair of surrogates is one character.
local function unicode(text, at)
    local high = tonumber(match(text, "^\\u(%x%x%x%x)", at) or "", 16)
    if not high then
        return "", at + 2
    end
    if high >= 0xD800 and high < 0xDC00 then
        local low = tonumber(match(text, "^\\u([dD][c-fC-F]%x%x)", at + 6) or "", 16)
        if low then
            return utf8.char(0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00), at + 12
        end
    end
    return utf8.char(high), at + 6
end

local function unescape(text)
    local parts, from = {}, 1
    while true do
        local place = find(text, "\\", from, true)
        if not place then
            parts[#parts + 1] = sub(text, from)
            return table.concat(parts)
        end
        parts[#parts + 1] = sub(text, from, place - 1)
        local letter = sub(text, place + 1, place + 1)
        if letter == "u" then
            parts[#parts + 1], from = unicode(text, place)
        else
            parts[#parts + 1], from = ESCAPES[letter] or letter, place + 2
        end
    end
end

-- No wanted key is longer, with each letter escaped. A longer one is not read: it may be a whole body.
local LONGEST_KEY = 6 * #"previous_response_id"
-- A longer string stays as it is written: it is no name, and as a session's only equality counts.
local LONGEST_STRING = 4096

-- A string, number or boolean, as Lua has them; a list or an object as its place in the text. null: nil.
local function value_at(text, at, stop, budget)
    local first = byte(text, at)
    if first == QUOTE then
        local value = sub(text, at + 1, stop - 2)
        if #value <= LONGEST_STRING and spend(budget, #value) then
            return unescape(value)
        end
        return value
    end
    if first == OPEN_OBJECT or first == OPEN_LIST then
        return { at = at, stop = stop }
    end
    local word = sub(text, at, stop - 1)
    if word == "null" then
        return nil
    end
    if word == "true" or word == "false" then
        return word == "true"
    end
    return tonumber(word) or word
end

-- The wanted keys of the object itself, and whether the text is "whole", "cut" before its end, or "bad".
local function read_object(text, wanted, from, budget)
    budget = budget or new_budget()
    local found = {}
    local at = skip_space(text, from or 1)
    local function broken()
        return found, at > #text and "cut" or "bad"
    end
    if byte(text, at) ~= OPEN_OBJECT then
        return broken()
    end
    at = skip_space(text, at + 1)
    if byte(text, at) == CLOSE_OBJECT then
        return found, "whole"
    end
    while true do
        if byte(text, at) ~= QUOTE then
            return broken()
        end
        local after = string_end(text, at, budget)
        if not after or not spend(budget, KEY_PARTS) then
            return found, "cut"
        end
        local key = after - at - 2 <= LONGEST_KEY and unescape(sub(text, at + 1, after - 2)) or ""
        at = skip_space(text, after)
        if byte(text, at) ~= COLON then
            return broken()
        end
        at = skip_space(text, at + 1)
        local first = byte(text, at)
        local stop = value_end(text, at, budget)
        if not stop then
            local is_open = first == QUOTE or first == OPEN_OBJECT or first == OPEN_LIST
            return found, (is_open or at > #text) and "cut" or "bad"
        end
        if wanted[key] then
            found[key] = value_at(text, at, stop, budget)
        end
        at = skip_space(text, stop)
        local next_char = byte(text, at)
        if next_char == CLOSE_OBJECT then
            return found, "whole"
        end
        if next_char ~= COMMA then
            return broken()
        end
        at = skip_space(text, at + 1)
    end
end

local function is_list(text, value)
    return type(value) == "table" and byte(text, value.at) == OPEN_LIST
end

-- Iterates over a list: the place of each value and the place after it. It ends where the text is cut or wrong.
local function elements(text, list, budget)
    local at = skip_space(text, list.at + 1)
    return function()
        local start = at
        local stop = start and value_end(text, start, budget)
        if not stop then
            return nil
        end
        local after = skip_space(text, stop)
        at = byte(text, after) == COMMA and skip_space(text, after + 1) or nil
        return start, stop
    end
end

-- The messages up to the first one of the user, as text: the beginning that all turns of a conversation share.
local function conversation(text, list, budget)
    for at, stop in elements(text, list, budget) do
        if byte(text, at) ~= OPEN_OBJECT then
            return nil
        end
        if read_object(text, { role = true }, at, budget).role == "user" then
            return sub(text, list.at, stop - 1)
        end
    end
    return nil
end

-- Keys. A line of the map: OWNER:ENDS:REQUESTS_PER_SECOND:IN_FLIGHT:TOKENS_PER_MINUTE:PRIORITY:SCOPE, 0 is no limit.

local owners = {}

local function seconds()
    local now = core.now()
    return now.sec + now.usec / 1000000
end

local function state_of(owner)
    local state = owners[owner]
    if not state then
        state = { in_flight = 0, arriving = 0, long = 0, refused = {}, answers = {}, prompt = 0, answered = 0 }
        owners[owner] = state
    end
    return state
end

local function fields_of(line)
    local fields = {}
    for field in string.gmatch(line or "", "[^:]+") do
        fields[#fields + 1] = field
    end
    return { owner = fields[1] or "?", per_second = tonumber(fields[3]) or 0, most = tonumber(fields[4]) or 0,
        per_minute = tonumber(fields[5]) or 0 }
end

-- A request whose body is on its way takes a buffer. Sets txn.arriving, unless its key has 'most' of them.
core.register_action("arrive", { "http-req" }, function(txn, most)
    local owner = fields_of(txn:get_var("txn.key")).owner
    local state = state_of(owner)
    if state.arriving < tonumber(most) then
        state.arriving = state.arriving + 1
        txn:set_var("txn.arriving", owner)
    end
end, 1)

local function refuse(txn, state, kind, wait)
    state.refused[kind] = (state.refused[kind] or 0) + 1
    txn:set_var("txn.refused", kind)
    txn:set_var("txn.wait", math.max(1, math.min(3600, math.ceil(wait))))
end

local PAUSE_MS = 20
-- The long bodies that the reader holds, by number, and how many there are in places of both kinds: the first ones of
-- each key have places of their own.
local bodies, last_body = {}, 0
local held = { first = 0, others = 0 }

-- Waits for a place in the reader, and sets txn.body; or sets txn.refused after 'patience' seconds.
core.register_action("enter_reader", { "http-req" }, function(txn, of_key, first, others, patience)
    local owner = fields_of(txn:get_var("txn.key")).owner
    local state, waited = state_of(owner), 0
    local most = { first = tonumber(first), others = tonumber(others) }
    while true do
        local kind = state.long < tonumber(of_key) and "first" or "others"
        if held[kind] < most[kind] then
            held[kind], state.long, last_body = held[kind] + 1, state.long + 1, last_body + 1
            bodies[last_body] = { owner = owner, kind = kind }
            return txn:set_var("txn.body", last_body)
        end
        if waited >= tonumber(patience) * 1000 then
            return refuse(txn, state, "bodies", 1)
        end
        core.msleep(PAUSE_MS)
        waited = waited + PAUSE_MS
    end
end, 4)

-- The reader holds a body no more: a server has it, or its request has ended.
local function leave_reader(number)
    local body = number and bodies[number]
    if body then
        bodies[number] = nil
        held[body.kind] = held[body.kind] - 1
        state_of(body.owner).long = state_of(body.owner).long - 1
    end
end

-- What the rules need of a request.

local WANTED = {
    model = true,
    n = true,
    prompt_cache_key = true,
    user = true,
    previous_response_id = true,
    background = true,
    messages = true,
    input = true,
    prompt = true,
    tools = true,
}

local function session_of(text, found)
    for _, key in ipairs({ "prompt_cache_key", "user" }) do
        local value = found[key]
        if type(value) == "string" and value ~= "" then
            return key .. ":" .. value
        end
    end
    return nil
end

local function beginning_of(text, found, budget)
    for _, key in ipairs({ "messages", "input" }) do
        local list = found[key]
        if is_list(text, list) then
            return conversation(text, list, budget)
        end
    end
    return nil
end

-- The tools that vLLM runs itself. Without a tool server it ignores them and answers as if it had been asked for none.
local BUILT_IN = { code_interpreter = true, web_search_preview = true, mcp = true }

local function built_in_tool(text, list, budget)
    if not is_list(text, list) then
        return nil
    end
    for at in elements(text, list, budget) do
        if byte(text, at) ~= OPEN_OBJECT then
            return nil
        end
        local kind = read_object(text, { type = true }, at, budget).type
        if BUILT_IN[kind] then
            return kind
        end
    end
    return nil
end

-- Names of sessions may be long, and only equality counts.
local function digest(txn, text)
    return txn.c:hex(txn.c:sha2(text, 256))
end

-- Pydantic takes a number in a string too.
local function whole_number(value)
    if type(value) == "string" then
        value = tonumber((string.gsub(value, "_", "")))
    end
    return type(value) == "number" and value >= 1 and math.floor(math.min(value, 1e6)) or 1
end

-- How many prompts a completion has: a list of texts, or of lists of tokens, has several.
local function prompts_of(text, found, budget)
    if not is_list(text, found.prompt) then
        return 1
    end
    local count = 0
    for at in elements(text, found.prompt, budget) do
        local first = byte(text, at)
        if first ~= QUOTE and first ~= OPEN_LIST then
            break
        end
        count = count + 1
    end
    return math.max(1, count)
end

-- No name of a model and no id of a response is longer.
local LONGEST_NAME = 512

local function has_arrived(txn)
    local owner = txn:get_var("txn.arriving")
    if owner then
        txn:unset_var("txn.arriving")
        local state = state_of(owner)
        state.arriving = state.arriving - 1
    end
end

-- Sets txn.read (what read_object says, or "much"), txn.model, txn.places (how many answers it asks for at once),
-- txn.named and txn.beginning (what names its session), txn.previous (the response that it goes on with) and
-- txn.background. All of them are short, since they become headers. Sessions are read where 'affinity' needs them.
local function read_request(txn, affinity)
    local text = txn.sf:req_body() or ""
    local budget = new_budget()
    local found, state = read_object(text, WANTED, 1, budget)
    local named = affinity ~= "none" and session_of(text, found)
    local beginning = affinity == "conversation" and not named and beginning_of(text, found, budget)
    local tool = built_in_tool(text, found.tools, budget)
    local places = whole_number(found.n) * prompts_of(text, found, budget)
    has_arrived(txn)
    txn:set_var("txn.read", budget.left < 0 and "much" or state)
    if found.model ~= nil then
        -- A name that no model has, for what is no name, and for what HAProxy would compare in part.
        local is_name = type(found.model) == "string" and #found.model <= LONGEST_NAME and not find(found.model, "%c")
        txn:set_var("txn.model", is_name and found.model or "?")
    end
    txn:set_var("txn.places", math.min(places, 1000000))
    if named then
        txn:set_var("txn.named", digest(txn, named))
    end
    if beginning then
        txn:set_var("txn.beginning", digest(txn, beginning))
    end
    if type(found.previous_response_id) == "string" then
        txn:set_var("txn.previous", sub(found.previous_response_id, 1, LONGEST_NAME))
    end
    if found.background == true then
        txn:set_var("txn.background", true)
    end
    if tool then
        txn:set_var("txn.tool", tool)
    end
end

core.register_action("read_request", { "http-req" }, read_request, 1)

-- The reader tells the gateway what it has read in headers. The values are a client's text, so they are in hexadecimal.

local PASSED = { "read", "model", "places", "named", "beginning", "previous", "background" }
local PREFIX = "x-vllm-fleet-"

core.register_action("pass_on", { "http-req" }, function(txn)
    for _, name in ipairs(PASSED) do
        local value = txn:get_var("txn." .. name)
        if value ~= nil then
            txn.http:req_set_header(PREFIX .. name, txn.c:hex(tostring(value)))
        end
    end
end)

core.register_action("take_over", { "http-req" }, function(txn)
    local headers = txn.http:req_get_headers()
    local body = headers[PREFIX .. "body"]
    if body and tonumber(body[0]) then
        txn:set_var("txn.held", tonumber(body[0]))
    end
    for _, name in ipairs(PASSED) do
        local line = headers[PREFIX .. name]
        if line and line[0] then
            local value = string.gsub(line[0], "%x%x", function(pair)
                return char(tonumber(pair, 16))
            end)
            if name == "places" then
                txn:set_var("txn.places", whole_number(tonumber(value)))
            elseif name == "background" then
                txn:set_var("txn.background", true)
            else
                txn:set_var("txn." .. name, value)
            end
        end
        txn.http:req_del_header(PREFIX .. name)
    end
end)

-- Whether a text has a control character that ends no line: a server may read it in another way than HAProxy.
core.register_converters("has_control", function(text)
    return find(text, "[\0-\8\11\12\14-\31\127]") and "yes" or "no"
end)

-- Servers.

-- The name of the server with this number, if it may get new requests: a drained one may not, and HAProxy itself would
-- send it those that name it.
local by_number = nil

local function server_with(number)
    if not by_number then
        by_number = {}
        for backend, proxy in pairs(core.backends) do
            for name, server in pairs(proxy.servers) do
                if sub(backend, 1, 6) == "model_" then
                    by_number[tonumber(server.puid)] = { name = name, server = server }
                end
            end
        end
    end
    return by_number[number]
end

core.register_converters("server_in_traffic", function(number)
    local found = server_with(tonumber(number))
    local drained = not found or found.server:is_draining()
    -- HAProxy makes a value of nil, which is then found.
    if drained == true or drained == 1 then
        return ""
    end
    return found.name
end)

-- The id of a new response: the first event of a stream, or the answer itself, has it.
core.register_converters("response_id", function(text)
    local from = 1
    if sub(text, 1, 1) ~= "{" then
        from = match(text, "data: *(){")
        if not from then
            return ""
        end
        local event = read_object(text, { response = true }, from)
        if event.response == nil then
            -- The object may be longer than what is there. Its id is its first key in all releases of vLLM.
            from = match(text, '"response" *: *(){', from)
            if not from then
                return ""
            end
        else
            from = event.response.at
        end
    end
    local id = read_object(text, { id = true }, from).id
    return type(id) == "string" and match(id, "^resp_[%w_%-]+$") or ""
end)

-- A bucket that fills with 'rate' a second up to 'most'; what is in it now.
local function level(bucket, rate, most, now)
    bucket.level = math.min(most, bucket.level + (now - bucket.at) * rate)
    bucket.at = now
    return bucket.level
end

-- The places that are taken at the servers of each backend.
local taken_of = {}

-- Admits a request of a key, or sets txn.refused (which limit) and txn.wait (seconds). Of a long body the gateway knows
-- only that it is one request; 'take' adds the other places when the reader has read it.
core.register_action("admit", { "http-req" }, function(txn)
    local key, now = fields_of(txn:get_var("txn.key")), seconds()
    local state = state_of(key.owner)
    local places = txn:get_var("txn.places") or 1
    if key.most > 0 and state.in_flight + places > key.most then
        return refuse(txn, state, "in_flight", 1)
    end
    if key.per_minute > 0 then
        state.tokens = state.tokens or { level = key.per_minute, at = now }
        local left = level(state.tokens, key.per_minute / 60, key.per_minute, now)
        if left <= 0 then
            return refuse(txn, state, "tokens", (1 - left) * 60 / key.per_minute)
        end
    end
    if key.per_second > 0 then
        local burst = math.max(1, key.per_second)
        state.requests = state.requests or { level = burst, at = now }
        local left = level(state.requests, key.per_second, burst, now)
        if left < 1 then
            return refuse(txn, state, "requests", (1 - left) / key.per_second)
        end
        state.requests.level = left - 1
    end
    state.in_flight = state.in_flight + places
    txn:set_var("txn.admitted", key.owner)
    txn:set_var("txn.counted", places)
end)

-- Takes the places of a request at its backend. Several answers to one request take as many places at once, and HAProxy
-- counts them as one, so they wait here for as many free ones, at most 'patience' seconds; a request that the reader
-- returns goes on then, since its body is under way. txn.turn: the more requests of its key are in flight, the later the
-- next one has its turn in the queue.
core.register_action("take", { "http-req" }, function(txn, patience)
    local state = state_of(fields_of(txn:get_var("txn.key")).owner)
    local places, backend = txn:get_var("txn.places") or 1, txn:get_var("txn.backend") or ""
    local seats, waited = txn:get_var("txn.seats") or 0, 0
    while places > 1 and seats > 0 and (taken_of[backend] or 0) + math.min(places, seats) > seats do
        if waited >= tonumber(patience) * 1000 then
            if txn:get_var("txn.admitted") then
                return refuse(txn, state, "places", 1)
            end
            break
        end
        core.msleep(PAUSE_MS)
        waited = waited + PAUSE_MS
    end
    if not txn:get_var("txn.admitted") then
        state.in_flight = state.in_flight + places - 1
        txn:set_var("txn.added", places - 1)
    end
    taken_of[backend] = (taken_of[backend] or 0) + places
    txn:set_var("txn.taken", places)
    txn:set_var("txn.turn", math.min(500000, state.in_flight * 1000))
end, 1)

-- Counts what an answer has cost, and gives the places back at its end.

local Count = {}
Count.__index = Count
Count.id = "what a request has cost"
Count.flags = filter.FLT_CFG_FL_HTX
--- Enough for a usage object that two blocks share.
local KEPT = 700

function Count.new()
    return setmetatable({ tail = "", events = 0, done = false }, Count)
end

function Count:start_analyze(txn, channel)
    filter.register_data_filter(self, channel)
end

function Count:http_headers(txn, message)
    if not message:is_resp() then
        return
    end
    local owner = txn:get_var("txn.admitted")
    if owner then
        local answers = state_of(owner).answers
        local status = tostring(txn.f:status())
        answers[status] = (answers[status] or 0) + 1
        self.owner = owner
    end
end

local function number_of(text, key)
    return tonumber(match(text, '"' .. key .. '" *: *(%d+)'))
end

function Count:http_payload(txn, message)
    if not (self.owner and message:is_resp()) then
        return
    end
    local block = message:body()
    if not block or block == "" then
        return
    end
    local from = 1
    while true do
        local place = find(block, "data:", from, true)
        if not place then
            break
        end
        self.events = self.events + 1
        from = place + 5
    end
    local text = self.tail .. block
    from = 1
    while true do
        local place = find(text, '"usage"', from, true)
        if not place then
            break
        end
        local object = find(text, "^ ?: ?{", place + 7) and sub(text, place, place + KEPT) or ""
        self.prompt = number_of(object, "prompt_tokens") or number_of(object, "input_tokens") or self.prompt
        self.answered = number_of(object, "completion_tokens") or number_of(object, "output_tokens") or self.answered
        from = place + 9
    end
    self.tail = sub(text, -KEPT)
end

-- The whole body of a request that the reader has returned is on its way to a server.
function Count:http_end(txn, message)
    if not message:is_resp() then
        leave_reader(txn:get_var("txn.held"))
    end
end

function Count:give_back(txn)
    if self.done then
        return
    end
    self.done = true
    has_arrived(txn)
    leave_reader(txn:get_var("txn.body"))
    local taken, added = txn:get_var("txn.taken"), txn:get_var("txn.added")
    if taken then
        local backend = txn:get_var("txn.backend") or ""
        taken_of[backend] = math.max(0, (taken_of[backend] or 0) - taken)
    end
    if added then
        local state = state_of(fields_of(txn:get_var("txn.key")).owner)
        state.in_flight = math.max(0, state.in_flight - added)
    end
    local owner = txn:get_var("txn.admitted")
    if not owner then
        return
    end
    local state = state_of(owner)
    state.in_flight = math.max(0, state.in_flight - (txn:get_var("txn.counted") or 1))
    -- A stream without a usage has about one token in each event.
    local answered = self.answered or math.max(0, self.events - 1)
    state.prompt = state.prompt + (self.prompt or 0)
    state.answered = state.answered + answered
    if state.tokens then
        state.tokens.level = state.tokens.level - (self.prompt or 0) - answered
    end
end

function Count:end_analyze(txn, channel)
    if channel:is_resp() then
        self:give_back(txn)
    end
end

core.register_filter("count", Count, function(class)
    return class
end)

-- What each key has used since the start of the process, for Prometheus.

local METRICS = {
    { "vllm_gateway_key_in_flight", "gauge", "Answers that are in flight.", function(state)
        return { [""] = state.in_flight }
    end },
    { "vllm_gateway_key_answers_total", "counter", "Answers, by status.", function(state)
        return state.answers, "status"
    end },
    { "vllm_gateway_key_refused_total", "counter", "Requests over a limit of the key.", function(state)
        return state.refused, "limit"
    end },
    { "vllm_gateway_key_tokens_total", "counter", "Tokens; of streams without a usage, their events.", function(state)
        return { prompt = state.prompt, answered = state.answered }, "kind"
    end },
}

core.register_service("key_metrics", "http", function(applet)
    local names = {}
    for name in pairs(owners) do
        names[#names + 1] = name
    end
    table.sort(names)
    local lines = {}
    for _, metric in ipairs(METRICS) do
        lines[#lines + 1] = string.format("# HELP %s %s\n# TYPE %s %s", metric[1], metric[3], metric[1], metric[2])
        for _, name in ipairs(names) do
            local values, label = metric[4](owners[name])
            for value, count in pairs(values) do
                local more = label and string.format(',%s="%s"', label, value) or ""
                lines[#lines + 1] = string.format('%s{key="%s"%s} %d', metric[1], name, more, math.floor(count))
            end
        end
    end
    lines[#lines + 1] = "# HELP vllm_gateway_long_bodies Long bodies that the reader holds."
    lines[#lines + 1] = "# TYPE vllm_gateway_long_bodies gauge"
    for _, kind in ipairs({ "first", "others" }) do
        lines[#lines + 1] = string.format('vllm_gateway_long_bodies{place="%s"} %d', kind, held[kind])
    end
    local text = table.concat(lines, "\n") .. "\n"
    applet:set_status(200)
    applet:add_header("Content-Type", "text/plain; version=0.0.4")
    applet:add_header("Content-Length", tostring(#text))
    applet:start_response()
    applet:send(text)
end)
